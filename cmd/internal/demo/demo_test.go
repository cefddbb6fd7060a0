package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

func TestTreeFindsEveryChange(t *testing.T) {
	ctx := context.Background()
	from := t.TempDir()
	for _, name := range []string{"a", "b/c", "b/d"} {
		p := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := stageFrom(ctx, from, filepath.Join(t.TempDir(), "tree"), 100)
	if err != nil || tr.files != 3 {
		t.Fatalf("staged %d files: %v", tr.files, err)
	}
	to := t.TempDir()
	if err := tr.copyTo(ctx, to); err != nil {
		t.Fatal(err)
	}
	if err := tr.check(ctx, to); err != nil {
		t.Fatalf("an equal copy: %v", err)
	}
	if err := os.WriteFile(filepath.Join(to, "b/c"), []byte("content of b/C"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := tr.check(ctx, to); err == nil {
		t.Error("a changed file passed")
	}
	if err := os.Remove(filepath.Join(to, "b/c")); err != nil {
		t.Fatal(err)
	}
	if err := tr.check(ctx, to); err == nil {
		t.Error("a missing file passed")
	}
}

func TestStageIsBounded(t *testing.T) {
	tr, err := stage(context.Background(), filepath.Join(t.TempDir(), "tree"), 250)
	if err != nil {
		t.Fatal(err)
	}
	if tr.files < minTreeFiles || tr.files > 500 || tr.bytes > maxTreeBytes || len(tr.sums) != tr.files {
		t.Errorf("%d files, %d sums, %d bytes", tr.files, len(tr.sums), tr.bytes)
	}
}

func TestLedgerFindsLostAndTornBlocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 8*blockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	led := &ledger{issued: map[int64]uint64{}, acked: map[int64]uint64{}}
	buf := make([]byte, blockSize)
	put := func(off int64, version uint64) {
		stamp(buf, off, version)
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			t.Fatal(err)
		}
	}
	for off := int64(0); off < 4*blockSize; off += blockSize {
		led.acked[off], led.issued[off] = 5, 6
		put(off, 5+uint64(off/blockSize)%2) // both the acknowledged and the one in flight will do
	}
	lost := func() int {
		n, err := led.verify(context.Background(), fd)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := lost(); n != 0 {
		t.Fatalf("%d lost of a disk without fault", n)
	}
	put(0, 4) // an older version came back
	put(blockSize, 7)
	stamp(buf, 2*blockSize, 5)
	copy(buf[blockSize/2:], make([]byte, blockSize/2)) // torn
	if _, err := unix.Pwrite(fd, buf, 2*blockSize); err != nil {
		t.Fatal(err)
	}
	if n := lost(); n != 3 {
		t.Errorf("%d of 3 faults were found", n)
	}
}

func TestReportIsAligned(t *testing.T) {
	var out bytes.Buffer
	d := &demo{way: &loopWay{}, s: &scratch.Place{Dir: "/tmp/x"}, tree: tree{files: 3412, bytes: 64e6, from: "/usr"},
		columns: []*column{{title: "embedded"}, {title: "memcached", server: &server{}}}}
	r := newReport(Options{Out: &out})
	r.head(d)
	r.row(step{key: "a", label: "a row"}, []cell{{Text: "one"}, {Text: "two"}})
	r.row(step{key: "b", label: "another row"}, []cell{{Text: "12 345 /s"}, {Text: "-"}})
	r.done(scratch.Swept{Mounts: 2, Processes: 1, Bytes: 5e6}, 3*time.Second)
	lines := strings.Split(out.String(), "\n")
	col := strings.Index(lines[3], "memcached")
	for i, want := range map[int]string{4: "two", 5: "-"} {
		if got := strings.TrimSpace(lines[i][col:]); got != want {
			t.Errorf("line %q has %q in the second column, want %q", lines[i], got, want)
		}
	}
	for _, l := range lines {
		if len([]rune(l)) > 80 {
			t.Errorf("more than 80 columns: %q", l)
		}
	}
	if !strings.Contains(out.String(), "cleaned up: 2 mounts, 1 process, 5 MB") {
		t.Errorf("the last line is %q", lines[len(lines)-2])
	}
}

func TestReportJSON(t *testing.T) {
	var out bytes.Buffer
	r := newReport(Options{Out: &out, JSON: true})
	r.head(&demo{way: &loopWay{}, s: &scratch.Place{}, columns: []*column{{title: "embedded"}}})
	r.row(step{key: "copy"}, []cell{{Text: "5 MB/s", Value: 5, Unit: "MB/s"}})
	r.done(scratch.Swept{}, time.Second)
	var got struct {
		Results map[string]map[string]cell `json:"results"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if c := got.Results["copy"]["embedded"]; c.Value != 5 || c.Unit != "MB/s" {
		t.Errorf("the cell is %+v", c)
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1 000", 1234567: "1 234 567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %q", n, got)
		}
	}
}
