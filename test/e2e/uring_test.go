//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// enableURing is the parameter of the kernel that offers FUSE over io_uring.
const enableURing = "/sys/module/fuse/parameters/enable_uring"

// TestURing runs the tests that matter most once more, with requests that come
// over io_uring instead of /dev/fuse.
func TestURing(t *testing.T) {
	rig.RequireLoop(t)
	if _, err := os.Stat(enableURing); err != nil {
		t.Skip("this kernel has no FUSE over io_uring (Linux 6.14)")
	}
	before, _ := os.ReadFile(enableURing)
	each := func(name string, limit time.Duration, mb int, f func(t *testing.T, r *rig.Rig, store string)) {
		t.Run(name, func(t *testing.T) {
			eachStore(t, limit, mb, func(t *testing.T, r *rig.Rig, store string) {
				r.Transport = "uring"
				f(t, r, store)
			})
		})
	}
	each("mount", time.Minute, 64, uringMount)
	each("model", 3*time.Minute, 256, modelRun)
	each("fio", 3*time.Minute, 1024, fioVerify)
	each("crash", 3*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) {
		t.Run("image", func(t *testing.T) { crash(t, r, store, "image", false) })
		t.Run("loop", func(t *testing.T) { crash(t, r, store, "loop", true) })
	})
	each("tree", 3*time.Minute, 1024, uringTree)
	if after, _ := os.ReadFile(enableURing); string(after) != string(before) {
		t.Errorf("%s was %q before and is %q now: it concerns mounts of others", enableURing, before, after)
	}
}

// overRings says whether a process has an io_uring open.
func overRings(t *testing.T, pid int) bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("process %d has no descriptors: %v", pid, err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.Contains(to, "io_uring") {
			return true
		}
	}
	return false
}

// uringMount: the transport is what was asked for, and no other mount's.
func uringMount(t *testing.T, r *rig.Rig, store string) {
	m := r.Mount(store)
	if !overRings(t, m.PID()) {
		t.Errorf("mounted with --transport=uring, and the daemon has no ring: %s", r.Kvbfs("status"))
	}
	m.Umount()
	r.Transport = ""
	m.Mount(store, "--transport=dev")
	if overRings(t, m.PID()) {
		t.Error("mounted with --transport=dev, and the daemon has a ring")
	}
	m.Umount()
}

// uringTree copies a tree onto ext4 and XFS and reads it after mounting again.
func uringTree(t *testing.T, r *rig.Rig, store string) {
	src := filepath.Join(goroot(t, r), "src", "cmd")
	want := rig.ReadTree(t, src)
	m := r.Mount(store)
	for _, fs := range []string{"ext4", "xfs"} {
		r.Create(store, fs, "1G")
		dev := m.Attach(fs)
		r.Mkfs(fs, dev)
		dir := r.MountFS(dev, fs)
		r.Run("cp", "-a", src, filepath.Join(dir, "src"))
		r.UmountFS(dir)
		r.Detach(dev)
	}
	m.Umount()
	m.Mount(store)
	for _, fs := range []string{"ext4", "xfs"} {
		dev := m.Attach(fs)
		r.Fsck(fs, dev)
		dir := r.MountFS(dev, fs)
		rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "src")))
		r.UmountFS(dir)
		r.Detach(dev)
	}
	if !overRings(t, m.PID()) {
		t.Error("this was not over io_uring")
	}
	m.Umount()
}
