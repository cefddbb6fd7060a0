package e2e

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestSmoke is the one test of the whole system that every `go test` runs: a
// volume on the embedded store, mounted, written, mounted again, read.
func TestSmoke(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary and mounts")
	}
	// Not rig.RequireFUSE: unit tests run in places without FUSE also under CI.
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("FUSE is not available: %v", err)
	} else {
		f.Close()
	}
	r := rig.New(t, time.Minute)
	store := r.FileStore()
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	want := bytes.Repeat([]byte("kvbfs "), 3000)
	f, err := rig.OpenPlain(m.Image("v"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt(want, 12345); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m.Umount()
	m.Mount(store)
	got, err := os.ReadFile(m.Image("v"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 16<<20 || !bytes.Equal(got[12345:12345+len(want)], want) {
		t.Fatalf("read %d bytes that are not what was written", len(got))
	}
	if rest := append(got[:12345:12345], got[12345+len(want):]...); len(bytes.Trim(rest, "\x00")) > 0 {
		t.Error("what was never written is not zeros")
	}
	if out := r.Kvbfs("status"); !strings.Contains(out, m.Dir) {
		t.Errorf("status does not name the mount:\n%s", out)
	}
	m.Umount()
	if left := r.Leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
