package file

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// alone asks for no proof.
type alone struct{}

func (alone) Server(kvstore.Key) int        { return 0 }
func (alone) Sentinel(int) (string, []byte) { return "", nil }

const layerOne kvstore.LayerID = 0xC0FFEE

// open opens a store with one layer and a channel.
func open(t *testing.T, dir string) (*Store, kvstore.Channel) {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Join(alone{}); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateLayer(context.Background(), layerOne); err != nil && !errors.Is(err, kvstore.ErrExists) {
		t.Fatal(err)
	}
	ch, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s, ch
}

func op(code kvstore.Code, n uint64, fill byte) *kvstore.Op {
	o := &kvstore.Op{Code: code, Key: kvstore.Key{Layer: layerOne, Number: n}, Data: make([]byte, kvstore.BlockSize)}
	for i := range o.Data {
		o.Data[i] = fill
	}
	return o
}

func do(ch kvstore.Channel, ops ...*kvstore.Op) error {
	ch.Do(context.Background(), ops)
	var errs []error
	for _, o := range ops {
		errs = append(errs, o.Err)
	}
	return errors.Join(errs...)
}

// replace puts a fake in the place of a system call for one test.
func replace[T any](t *testing.T, f *T, fake T) {
	old := *f
	*f = fake
	t.Cleanup(func() { *f = old })
}

// The kernel reports a failed write-back once; the store never forgets it.
func TestFailedFlushSticks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, ch := open(t, dir)
	if err := errors.Join(do(ch, op(kvstore.Write, 1, 1)), ch.Flush(context.Background(), layerOne)); err != nil {
		t.Fatal(err)
	}
	fail := true
	real := fdatasync
	replace(t, &fdatasync, func(fd int) error {
		if fail {
			fail = false
			return unix.EIO
		}
		return real(fd)
	})
	for i := range 3 {
		if err := ch.Flush(context.Background(), layerOne); !errors.Is(err, unix.EIO) || !errors.Is(err, kvstore.ErrUnreachable) {
			t.Errorf("flush %d after the failure: %v", i, err)
		}
	}
	// Another layer is not affected.
	if err := s.CreateLayer(context.Background(), 2); err != nil {
		t.Fatal(err)
	}
	if err := ch.Flush(context.Background(), 2); err != nil {
		t.Errorf("flush of another layer: %v", err)
	}
	s.Close()
	_, ch = open(t, dir)
	if err := ch.Flush(context.Background(), layerOne); err != nil {
		t.Errorf("flush after opening anew: %v", err)
	}
}

// Without holes discards write zeros, up to the end of the file.
func TestDiscardWithoutHoles(t *testing.T) {
	replace(t, &punch, func(int, int64, int64) error { return unix.EOPNOTSUPP })
	s, ch := open(t, filepath.Join(t.TempDir(), "store"))
	for n := range uint64(200) {
		if err := do(ch, op(kvstore.Write, n, 7)); err != nil {
			t.Fatal(err)
		}
	}
	d := op(kvstore.Discard, 1, 0)
	d.Count = 1 << 20
	if err := do(ch, d); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 1, 100, 199, 200} {
		r := op(kvstore.Read, n, 9)
		if err := do(ch, r); err != nil {
			t.Fatal(err)
		}
		want := byte(0)
		if n == 0 {
			want = 7
		}
		if r.Data[0] != want || r.Data[kvstore.BlockSize-1] != want {
			t.Errorf("block %d holds %d, want %d", n, r.Data[0], want)
		}
	}
	found, err := s.Inspect(context.Background())
	if err != nil || !strings.Contains(findings(found), "cannot punch holes") {
		t.Errorf("findings: %v %s", err, findings(found))
	}
}

func findings(found []kvstore.Finding) string {
	var b strings.Builder
	for _, f := range found {
		b.WriteString(f.Severity.String() + ": " + f.What + "\n")
	}
	return b.String()
}

// Record names become harmless file names, each its own.
func TestFileNames(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{".", "..", "../x", "/etc/passwd", ".new", "a/b", "a%2Fb", "A", "a", "a.b", "kvbfs:pool:x", "KVBFS"} {
		f, err := fileName(name)
		if err != nil || strings.ContainsAny(f, "/\x00") || strings.HasPrefix(f, ".") || seen[f] != "" {
			t.Errorf("%q becomes %q (%v), as does %q", name, f, err, seen[f])
		}
		seen[f] = name
	}
	for _, bad := range []string{"", "a b", "a\n", "\x00", "\xff", strings.Repeat("a", 251), strings.Repeat("/", 100)} {
		if f, err := fileName(bad); !errors.Is(err, kvstore.ErrInvalid) {
			t.Errorf("%.20q becomes %q, %v", bad, f, err)
		}
	}
}

// What is missing or spoiled on disk is loss, never a hole or an empty record.
func TestLoss(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, ch := open(t, dir)
	ctx := context.Background()
	if err := do(ch, op(kvstore.Write, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Control().Add(ctx, 0, "a:b", []byte("value")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, recordDir, "a:b")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(raw) {
		if err := os.WriteFile(file, raw[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Control().Get(ctx, 0, "a:b"); !errors.Is(err, kvstore.ErrCorrupt) {
			t.Errorf("record cut to %d bytes: %v", cut, err)
		}
	}
	if err := os.Remove(s.layerPath(layerOne, ".blk")); err != nil {
		t.Fatal(err)
	}
	if err := ch.Flush(ctx, layerOne); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("flush of a deleted file: %v", err)
	}
	_, fresh := func() (*Store, kvstore.Channel) {
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := s.Join(alone{}); err != nil {
			t.Fatal(err)
		}
		ch, err := s.Channel(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s, ch
	}()
	if err := do(fresh, op(kvstore.Read, 1, 0)); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("read of a deleted layer: %v", err)
	}
	if err := do(fresh, op(kvstore.Write, 1, 0)); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("write to a deleted layer: %v", err)
	}
}

// RemoveLayer under the feet of a channel: its next use is told, and no other
// file of the process is hit.
func TestRemoveWhileInUse(t *testing.T) {
	s, ch := open(t, filepath.Join(t.TempDir(), "store"))
	ctx := context.Background()
	if err := do(ch, op(kvstore.Write, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLayer(ctx, layerOne); err != nil {
		t.Fatal(err)
	}
	if err := do(ch, op(kvstore.Write, 1, 1)); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("write to a removed layer: %v", err)
	}
	if err := do(ch, op(kvstore.Discard, 1, 1)); err != nil {
		t.Errorf("discard in a removed layer: %v", err)
	}
	if n, err := s.Allocated(ctx, layerOne); n != 0 || err != nil {
		t.Errorf("allocated in a removed layer: %d, %v", n, err)
	}
	if err := s.CreateLayer(ctx, layerOne); !errors.Is(err, kvstore.ErrExists) {
		t.Errorf("claim of a removed layer: %v", err)
	}
}

// The command of Locate prints the block.
func TestLocate(t *testing.T) {
	s, ch := open(t, filepath.Join(t.TempDir(), "it's a store"))
	if err := do(ch, op(kvstore.Write, 5, 'x'), op(kvstore.Write, 6, 'y')); err != nil {
		t.Fatal(err)
	}
	cmd := s.Locate(kvstore.Key{Layer: layerOne, Number: 5}).Command
	out, err := exec.Command("sh", "-c", strings.TrimSuffix(cmd, "| xxd")).Output()
	if err != nil || string(out) != strings.Repeat("x", kvstore.BlockSize) {
		t.Errorf("%s: %v, %d bytes", cmd, err, len(out))
	}
}

// Reads that the cache cannot answer, mixed with ones that it can, with holes,
// and with the end of the file.
func TestColdReads(t *testing.T) {
	s, ch := open(t, filepath.Join(t.TempDir(), "store"))
	const n = 256
	for i := range uint64(n) {
		if i%5 != 0 {
			if err := do(ch, op(kvstore.Write, i, byte(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := ch.Flush(context.Background(), layerOne); err != nil {
		t.Fatal(err)
	}
	l, err := s.layer(layerOne)
	if err != nil {
		t.Fatal(err)
	}
	for _, cold := range []int64{n, n / 2, 0} {
		if err := unix.Fadvise(l.fd, 0, cold*kvstore.BlockSize, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		var ops []*kvstore.Op
		for i := range uint64(n + 20) {
			ops = append(ops, op(kvstore.Read, i*37%(n+20), 0xEE)) // 37 and 276 have no common factor
		}
		ops = append(ops, op(kvstore.Write, n+50, 1))
		if err := do(ch, ops...); err != nil {
			t.Fatal(err)
		}
		for _, o := range ops[:n+20] {
			want := byte(o.Key.Number)
			if o.Key.Number%5 == 0 || o.Key.Number >= n {
				want = 0
			}
			if o.Data[0] != want || o.Data[kvstore.BlockSize-1] != want {
				t.Fatalf("%d blocks cold: block %d holds %d, want %d", cold, o.Key.Number, o.Data[0], want)
			}
		}
	}
}

// TestNoChecksum: the store gives what the local file system gives, right or wrong.
func TestNoChecksum(t *testing.T) {
	s, ch := open(t, filepath.Join(t.TempDir(), "store"))
	if err := errors.Join(do(ch, op(kvstore.Write, 1, 7)), ch.Flush(context.Background(), layerOne)); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(s.layerPath(layerOne, ".blk"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{8}, kvstore.BlockSize+100); err != nil {
		t.Fatal(err)
	}
	want := op(kvstore.Read, 1, 7)
	want.Data[100] = 8
	got := op(kvstore.Read, 1, 0)
	if err := do(ch, got); err != nil || !bytes.Equal(got.Data, want.Data) {
		t.Errorf("a changed byte: %v", err)
	}
}
