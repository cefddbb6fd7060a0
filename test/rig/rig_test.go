package rig

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a test that is allowed to fail.
type recorder struct {
	testing.TB
	failed int
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed++ }
func (r *recorder) Fatalf(string, ...any) { r.failed++ }

func TestSameTreeFindsEachDifference(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	want := ReadTree(t, dir)
	for name, change := range map[string]func() error{
		"content":    func() error { return os.WriteFile(filepath.Join(dir, "f"), []byte("y"), 0o644) },
		"mode":       func() error { return os.Chmod(filepath.Join(dir, "f"), 0o600) },
		"additional": func() error { return os.Mkdir(filepath.Join(dir, "d"), 0o755) },
		"missing":    func() error { return os.Remove(filepath.Join(dir, "l")) },
	} {
		before := &recorder{TB: t}
		SameTree(before, want, ReadTree(t, dir))
		if err := change(); err != nil {
			t.Fatal(err)
		}
		after := &recorder{TB: t}
		SameTree(after, want, ReadTree(t, dir))
		if after.failed == 0 {
			t.Errorf("%s: not found", name)
		}
		if name == "content" {
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	same := &recorder{TB: t}
	if SameTree(same, want, want); same.failed > 0 {
		t.Error("a tree differs from itself")
	}
}

func TestLedgerFindsEachFault(t *testing.T) {
	const blocks = 8
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, blocks*BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenPlain(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := Aligned(BlockSize)
	for name, spoil := range map[string]func(){
		"lost":    func() { Stamp(buf, 3, 0) },
		"older":   func() { Stamp(buf, 3, 1) },
		"foreign": func() { Stamp(buf, 4, 2) },
		"torn":    func() { Stamp(buf, 3, 2); clear(buf[BlockSize/2:]) },
	} {
		led := NewLedger(blocks)
		led.acked[3], led.issued[3] = 2, 3
		for _, fine := range []uint64{2, 3} {
			Stamp(buf, 3, fine)
			if err := f.WriteAt(buf, 3*BlockSize); err != nil {
				t.Fatal(err)
			}
			led.acked[3], led.issued[3] = 2, 3
			led.Verify(t, f)
		}
		led.acked[3], led.issued[3] = 2, 3
		spoil()
		if err := f.WriteAt(buf, 3*BlockSize); err != nil {
			t.Fatal(err)
		}
		r := &recorder{TB: t}
		if led.Verify(r, f); r.failed == 0 {
			t.Errorf("%s: not found", name)
		}
	}
}

func TestOneLine(t *testing.T) {
	for text, fine := range map[string]bool{
		"kvbfs: no such volume":               true,
		"kvbfs: no such volume\n  make it so": true,
		"":                                    false,
		"no such volume":                      false,
		"kvbfs: a\nkvbfs: b":                  false,
		"kvbfs: a\n  b\n  c":                  false,
		"kvbfs: panic: x\n\ngoroutine 1 [running]:": false,
	} {
		r := &recorder{TB: t}
		if OneLine(r, "x", text); (r.failed == 0) != fine {
			t.Errorf("%q: accepted %v, want %v", text, r.failed == 0, fine)
		}
	}
}

// TestProxyKeepsTheStream: what goes through comes back whole, in order, also
// when it is much, and closing ends every goroutine (goleak looks).
func TestProxyKeepsTheStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	p := NewProxy(t, l.Addr().String(), 0)
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make([]byte, 1<<20)
	for i := range sent {
		sent[i] = byte(i * 7 >> 3)
	}
	go c.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != string(sent) {
		t.Error("the stream was changed")
	}
}
