//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestTakeover: a holder that was stopped for longer than its lease loses the volume
// to another machine. When it goes on it writes nothing any more, and neither its
// writes nor its flushes are acknowledged. `kvbfs lock` shows the one and breaks the
// other.
func TestTakeover(t *testing.T) {
	mostlyWaits(t)
	rig.RequireFUSE(t)
	all := map[string]func(t *testing.T){} // half a minute each, for the lease to end
	for _, kind := range kinds {
		all[kind] = func(t *testing.T) {
			r := rig.New(t, 5*time.Minute)
			takeover(t, r, engine(t, r, kind, 128).URL())
		}
	}
	sideBySide(t, all)
}

func takeover(t *testing.T, r *rig.Rig, store string) {
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	if out := r.Kvbfs("lock", "ls", "--store", store); !strings.Contains(out, "v ") || !strings.Contains(out, "(this machine)") {
		t.Errorf("lock ls:\n%s", out)
	}
	dir := r.Mkdir("theirs")
	their := []string{"KVBFS_STATE_DIR=" + r.Mkdir("their-state"), "KVBFS_RUNTIME_DIR=" + r.Mkdir("their-run")}
	kvbfs := func(args ...string) rig.Result {
		return r.Do(rig.Cmd{Args: append([]string{r.Bin}, args...), Env: their})
	}
	if res := kvbfs("lock", "break", "v", "--store", store); res.Code != 1 || !strings.Contains(res.Stderr, "--force") {
		t.Errorf("breaking the lease of a holder that lives: status %d\n%s", res.Code, res.All())
	}
	rig.Stop(t, m.PID())
	r.Must(rig.Cmd{Args: append([]string{r.Bin}, r.MountArgs(dir, "--store", store)...), Env: their})
	var g *rig.File
	rig.Eventually(t, 90*time.Second, "the other machine may write", func() bool {
		var err error
		g, err = rig.OpenDirect(filepath.Join(dir, "v"))
		return err == nil
	})
	fill(t, g, 64, 2)
	must(t, syscall.Kill(m.PID(), syscall.SIGCONT))
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range int64(64) {
		rig.Stamp(buf, i, 3)
		if err := f.WriteAt(buf, i*rig.BlockSize); err == nil {
			t.Fatalf("a write of the old holder to block %d succeeded", i)
		}
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("a flush of the old holder: %v, want an error", err)
	}
	for i := range int64(64) {
		must(t, g.ReadAt(buf, i*rig.BlockSize))
		if rig.Stamp(want, i, 2); string(buf) != string(want) {
			t.Fatalf("block %d is not the new holder's", i)
		}
	}
	f.Close()
	if res := r.TryKvbfs("umount", m.Dir); res.Code != 1 || !strings.Contains(res.Stderr, "volume v was closed") {
		t.Errorf("umount of the old holder, whose flushes failed: status %d\n%s", res.Code, res.All())
	}
	rig.Eventually(t, 30*time.Second, "the old holder's daemon ends", func() bool { return !rig.Alive(m.PID()) })
	// By force: the lease of the one that lives now.
	if res := r.TryKvbfs("lock", "break", "v", "--force", "--store", store); res.Code != 0 {
		t.Errorf("lock break --force: status %d\n%s", res.Code, res.All())
	}
	rig.Stamp(buf, 0, 4)
	if err := g.WriteAt(buf, 0); err == nil {
		t.Error("a write of a holder whose lease was broken succeeded")
	}
	g.Close()
	if res := kvbfs("umount", dir); res.Code != 0 {
		t.Logf("umount of a holder whose lease was broken: %s", res.All())
	}
}

// TestSuccessor: what a daemon sent before it was killed, and its server executes
// later, does not come back over what a successor writes.
func TestSuccessor(t *testing.T) {
	rig.RequireFUSE(t)
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			r := rig.New(t, 4*time.Minute)
			srv := r.Memcached(256)
			if network == "tcp" {
				srv = r.MemcachedTCP(256)
			}
			successor(t, r, srv.Engine(), "v")
		})
	}
}

func successor(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	store := e.URL()
	r.Create(store, v, "16M")
	m := r.Mount(store)
	const blocks = 256
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for round := range uint64(3) {
		f := rig.Direct(t, m.Image(v))
		fill(t, f, blocks, 10*round+1)
		e.Stop()
		for i := range int64(blocks) {
			go func() {
				mine := rig.Aligned(rig.BlockSize)
				rig.Stamp(mine, i, 10*round+2)
				_ = f.WriteAt(mine, i*rig.BlockSize) // ends with an error when the daemon is killed
			}()
		}
		time.Sleep(300 * time.Millisecond)
		m.Kill()
		e.Continue()
		m.Mount(store)
		f2 := rig.Direct(t, m.Image(v))
		fill(t, f2, blocks, 10*round+3)
		for range 5 {
			for i := range int64(blocks) {
				must(t, f2.ReadAt(buf, i*rig.BlockSize))
				if rig.Stamp(want, i, 10*round+3); string(buf) != string(want) {
					t.Fatalf("round %d: block %d is not what the successor wrote", round, i)
				}
			}
		}
		f.Close()
		f2.Close()
	}
	m.Umount()
}

// TestClocks: a machine whose monotonic clock is a million seconds ahead (a time
// namespace) is refused while this one holds the volume, takes it when it is free,
// and keeps this one out. With KVBFS_E2E_LONG it also succeeds a holder that was
// killed, when its lease has run out and not before.
func TestClocks(t *testing.T) {
	mostlyWaits(t)
	rig.RequireFUSE(t)
	rig.Require(t, "unshare")
	r := rig.New(t, 3*time.Minute)
	ahead := []string{"unshare", "--time", "--monotonic", "1000000", "--boottime", "1000000"}
	if res := r.Try(append(slices.Clip(ahead), "true")...); res.Code != 0 {
		rig.Missing(t, "no time namespaces: %s", res.All())
	}
	store := r.MemcachedTCP(128).URL()
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	dir := r.Mkdir("theirs")
	their := []string{"KVBFS_STATE_DIR=" + r.Mkdir("their-state"), "KVBFS_RUNTIME_DIR=" + r.Mkdir("their-run")}
	r.Must(rig.Cmd{Args: slices.Concat(ahead, []string{r.Bin}, r.MountArgs(dir, "--store", store)), Env: their})
	image := filepath.Join(dir, "v")
	if _, err := rig.OpenDirect(image); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opening what a machine with another clock holds: %v", err)
	}
	fill(t, f, 64, 2)
	f.Close()
	var g *rig.File
	rig.Eventually(t, 60*time.Second, "the other machine may write", func() bool {
		var err error
		g, err = rig.OpenDirect(image)
		return err == nil
	})
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	must(t, g.ReadAt(buf, 63*rig.BlockSize))
	if rig.Stamp(want, 63, 2); string(buf) != string(want) {
		t.Error("the other machine does not read what was written last")
	}
	if _, err := rig.OpenDirect(m.Image("v")); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opening what the machine with the other clock holds: %v", err)
	}
	g.Close()
	rig.Eventually(t, 60*time.Second, "this machine may write again", func() bool {
		var err error
		f, err = rig.OpenDirect(m.Image("v"))
		return err == nil
	})
	if os.Getenv("KVBFS_E2E_LONG") == "" {
		f.Close()
	} else {
		m.Kill()
		f.Close()
		began := time.Now()
		rig.Eventually(t, 90*time.Second, "the other machine succeeds", func() bool {
			var err error
			g, err = rig.OpenDirect(image)
			return err == nil
		})
		if waited := time.Since(began); waited < 20*time.Second {
			t.Errorf("the lease of a machine that was killed was taken after %v", waited)
		}
		g.Close()
	}
	r.Must(rig.Cmd{Args: []string{r.Bin, "umount", dir}, Env: their})
	if os.Getenv("KVBFS_E2E_LONG") == "" {
		m.Umount()
	}
}
