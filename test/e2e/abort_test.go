//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// waiting starts a write that is to hang, and returns where its result will be.
func waiting(t *testing.T, f *rig.File, block int64, version uint64) chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		buf := rig.Aligned(rig.BlockSize)
		rig.Stamp(buf, block, version)
		done <- f.WriteAt(buf, block*rig.BlockSize)
	}()
	select {
	case err := <-done:
		t.Fatalf("a write to a silent store ended: %v", err)
	case <-time.After(time.Second):
	}
	return done
}

// ends fails the test if a request does not end with an error.
func ends(t *testing.T, what string, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err == nil {
			t.Errorf("%s succeeded", what)
		}
	case <-time.After(45 * time.Second):
		t.Fatalf("%s still waits", what)
	}
}

// TestAbortVolume: `kvbfs abort NAME` fails what waits on one volume while its server
// is stopped, and the unmount does not wait for the server either. What was
// acknowledged, flushed or not, is there when the volume is opened again.
func TestAbortVolume(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*time.Minute)
	srv := r.Memcached(128)
	store := srv.URL()
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 16, 1)
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	rig.Stamp(buf, 40, 2)
	must(t, f.WriteAt(buf, 40*rig.BlockSize)) // not flushed
	if res := r.TryKvbfs("abort", "nosuch"); res.Code != 1 {
		t.Errorf("abort of a volume that is not open: status %d\n%s", res.Code, res.All())
	}
	srv.Stop()
	done := waiting(t, f, 50, 3) // a new block: with write-back no other write waits
	if out := r.Kvbfs("abort", "v"); !strings.Contains(out, "v: aborted") {
		t.Errorf("abort said %q", out)
	}
	ends(t, "the write that waited", done)
	if err := f.ReadAt(buf, 0); !errors.Is(err, unix.EIO) {
		t.Errorf("a read after the abort: %v, want EIO", err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("a flush after the abort: %v, want EIO", err)
	}
	if out := r.Kvbfs("status"); !strings.Contains(out, "aborted") {
		t.Errorf("status does not tell of the abort:\n%s", out)
	}
	f.Close()
	r.Must(rig.Cmd{Args: []string{r.Bin, "umount", m.Dir}, Limit: 45 * time.Second})
	srv.Continue()
	m.Mount(store)
	f = rig.Direct(t, m.Image("v"))
	must(t, f.ReadAt(buf, 40*rig.BlockSize))
	if rig.Stamp(want, 40, 2); string(buf) != string(want) {
		t.Error("the abort lost a write that was acknowledged")
	}
	fill(t, f, 16, 4)
	f.Close()
	m.Umount()
}

// TestAbortMount: `kvbfs abort DIR` ends what waits for a mount whose daemon is
// stopped, or whose server is; the mount point is usable afterwards.
func TestAbortMount(t *testing.T) {
	rig.RequireFUSE(t)
	for _, what := range []string{"daemon", "server"} {
		t.Run(what, func(t *testing.T) {
			r := rig.New(t, 2*time.Minute)
			srv := r.Memcached(128)
			store := srv.URL()
			r.Create(store, "v", "16M")
			m := r.Mount(store)
			f := rig.Direct(t, m.Image("v"))
			fill(t, f, 16, 1)
			if what == "daemon" {
				rig.Stop(t, m.PID())
			} else {
				srv.Stop()
			}
			done := waiting(t, f, 50, 2) // a new block: with write-back no other write waits
			out := r.Must(rig.Cmd{Args: []string{r.Bin, "abort", m.Dir}, Limit: 45 * time.Second}).Stdout
			t.Logf("%s", strings.TrimSpace(out))
			if !strings.Contains(out, "aborted") || what == "daemon" && !strings.Contains(out, "was stopped and goes on") {
				t.Errorf("abort said %q", out)
			}
			ends(t, "the write that waited", done)
			f.Close()
			if what == "server" {
				// The daemon stores what is left when the server is back.
				srv.Continue()
			}
			rig.Eventually(t, 45*time.Second, "the daemon ends", func() bool { return !rig.Alive(m.PID()) })
			r.Kvbfs("umount", m.Dir)
			m.Mount(store)
			f = rig.Direct(t, m.Image("v"))
			fill(t, f, 16, 3)
			f.Close()
			m.Umount()
		})
	}
	r := rig.New(t, time.Minute)
	if res := r.TryKvbfs("abort", r.Mkdir("nothing")); res.Code != 1 || !strings.Contains(res.Stderr, "not mounted") {
		t.Errorf("abort of a plain directory: status %d\n%s", res.Code, res.All())
	}
}

// TestDumpOnQuit: SIGQUIT makes the daemon say what it is doing, and it goes on.
func TestDumpOnQuit(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	srv := r.Memcached(128)
	r.Create(srv.URL(), "v", "16M")
	m := r.Mount(srv.URL())
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 16, 1)
	srv.Stop()
	done := waiting(t, f, 5, 2)
	rig.Eventually(t, 30*time.Second, "the log has the state", func() bool {
		// Again: what waits is named once it has waited for some time.
		must(t, syscall.Kill(m.PID(), syscall.SIGQUIT))
		time.Sleep(200 * time.Millisecond)
		logs, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			has := func(s string) bool { return strings.Contains(string(text), s) }
			if has("granted: ") && has("write of v (4096 bytes at 20480) waits for server") && has("volume v: ") &&
				has("lease ") && has("goroutine profile") {
				return true
			}
		}
		return false
	})
	srv.Continue()
	if err := <-done; err != nil {
		t.Errorf("after the dump: %v", err)
	}
	f.Close()
	m.Umount()
}
