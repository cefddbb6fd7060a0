//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestResize grows a volume under a mounted file system, as one does with a
// disk of a virtual machine, and shrinks one that is not in use.
func TestResize(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "losetup", "resize2fs", "xfs_growfs")
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			eachStore(t, 2*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) { grow(t, r, store, fs) })
		})
	}
	t.Run("shrink", func(t *testing.T) {
		eachStore(t, time.Minute, 128, shrink)
	})
}

func grow(t *testing.T, r *rig.Rig, store, fs string) {
	r.Create(store, "disk", "400M")
	m := r.Mount(store)
	dev := m.Attach("disk")
	r.Mkfs(fs, dev)
	dir := r.MountFS(dev, fs)
	r.Run("cp", "-a", filepath.Join(goroot(t, r), "src", "fmt"), filepath.Join(dir, "old"))
	want := rig.ReadTree(t, filepath.Join(dir, "old"))
	before := capacity(t, dir)

	// Refused while attached, whatever is asked for.
	for _, args := range [][]string{{"200M"}, {"200M", "--allow-shrink"}} {
		res := r.TryKvbfs(append([]string{"volume", "resize", "disk", "--store", store}, args...)...)
		if res.Code == 0 {
			t.Errorf("volume resize %v of a mounted disk: status 0\n%s", args, res.All())
		}
		rig.OneLine(t, "shrink", res.Stderr)
	}
	r.Kvbfs("volume", "resize", "disk", "1G", "--store", store)
	r.Run("losetup", "-c", dev)
	if size := strings.TrimSpace(r.Run("blockdev", "--getsize64", dev)); size != fmt.Sprint(1<<30) {
		t.Fatalf("the device has %s bytes after growing to 1G", size)
	}
	if fs == "xfs" {
		r.Run("xfs_growfs", dir)
	} else if res := r.Try("resize2fs", dev); strings.Contains(res.Stderr, "Permission denied") {
		// The kernel grows a mounted ext4 for CAP_SYS_RESOURCE only.
		t.Log("no CAP_SYS_RESOURCE: ext4 grows unmounted")
		r.UmountFS(dir)
		r.Run("e2fsck", "-f", "-p", dev)
		r.Run("resize2fs", dev)
		dir = r.MountFS(dev, fs)
	} else if res.Code != 0 {
		t.Fatalf("resize2fs: status %d\n%s", res.Code, res.All())
	}
	if after := capacity(t, dir); after < before+500<<20 {
		t.Errorf("the file system has %s, %s before the volume grew by 624 MiB", rig.Size(after), rig.Size(before))
	}
	r.Run("dd", "if=/dev/urandom", "of="+filepath.Join(dir, "new"), "bs=1M", "count=64", "oflag=direct")
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "old")))
	r.UmountFS(dir)
	r.Fsck(fs, dev)
	r.Detach(dev)
	m.Umount()
	if out := r.Kvbfs("volume", "info", "disk", "--store", store); !strings.Contains(out, "1073741824") {
		t.Errorf("volume info after growing:\n%s", out)
	}
}

// capacity is the size of a mounted file system in bytes.
func capacity(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks) * st.Frsize
}

// shrink cuts a volume off: refused unless asked for, what is beyond the end is
// gone for good and its blocks are freed, also when the volume grows again.
func shrink(t *testing.T, r *rig.Rig, store string) {
	r.Create(store, "v", "8M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 2048, 1)
	f.Close()
	m.Umount()
	res := r.TryKvbfs("volume", "resize", "v", "4M", "--store", store)
	if res.Code != 2 || !strings.Contains(res.Stderr, "--allow-shrink") {
		t.Errorf("shrinking unasked: status %d\n%s", res.Code, res.All())
	}
	r.Kvbfs("volume", "resize", "v", "4M", "--allow-shrink", "--store", store)
	r.Kvbfs("volume", "resize", "v", "8M", "--store", store)
	m.Mount(store)
	if fi, err := os.Stat(m.Image("v")); err != nil || fi.Size() != 8<<20 {
		t.Fatalf("after shrinking and growing: %v, %v", fi, err)
	} else if n := fi.Sys().(*syscall.Stat_t).Blocks * 512; n != 4<<20 {
		t.Errorf("after shrinking to 4M it takes %s", rig.Size(n))
	}
	f = rig.Direct(t, m.Image("v"))
	got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range int64(2048) {
		if err := f.ReadAt(got, i*rig.BlockSize); err != nil {
			t.Fatal(err)
		}
		if rig.Stamp(want, i, 1); i >= 1024 {
			clear(want)
		}
		if string(got) != string(want) {
			t.Fatalf("block %d after shrinking to 1024 blocks and growing is wrong", i)
		}
	}
	f.Close()
	m.Umount()
}
