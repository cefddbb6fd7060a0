//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestMemoryPressure: a writer in a small memory cgroup dirties far more pages of a
// file system on a device than it may hold (row 17). It makes progress, since the
// daemon that takes the pages is outside. The daemon must never be in such a group:
// reclaim would wait for it, and it for reclaim, which no process gets out of.
func TestMemoryPressure(t *testing.T) {
	rig.RequireLoop(t)
	group := memoryGroup(t, 48<<20)
	r := rig.New(t, 4*time.Minute)
	srv := r.Memcached(512)
	r.Create(srv.URL(), "v", "400M")
	m := r.Mount(srv.URL())
	dev := m.Attach("v")
	r.Mkfs("ext4", dev)
	dir := r.MountFS(dev, "ext4")
	script := `echo $$ >"$1/cgroup.procs" && exec dd if=/dev/urandom of="$2/big" bs=1M count=240 conv=fsync status=none`
	res := r.Do(rig.Cmd{Args: []string{"sh", "-c", script, "sh", group, dir}, Limit: 3 * time.Minute})
	if res.Code != 0 {
		t.Fatalf("the writer: status %d, %v after %v\n%s", res.Code, res.Err, res.Took, res.All())
	}
	sum := r.Run("sha256sum", filepath.Join(dir, "big"))
	r.UmountFS(dir)
	r.Fsck("ext4", dev)
	dir2 := r.MountFS(dev, "ext4")
	if again := r.Run("sha256sum", filepath.Join(dir2, "big")); sum[:64] != again[:64] {
		t.Errorf("240 MiB written under pressure differ after mounting again: %s, %s", sum, again)
	}
	r.UmountFS(dir2)
	r.Detach(dev)
	t.Logf("240 MiB in a group of 48 MiB: %v", res.Took.Round(time.Millisecond))
}

// memoryGroup makes a memory cgroup of either version for the test.
func memoryGroup(t *testing.T, limit int64) string {
	t.Helper()
	name := fmt.Sprintf("kvbfs-test-%d", os.Getpid())
	for _, try := range []struct{ top, file string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(try.top, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 { // the last process leaves it in a moment
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			t.Errorf("the cgroup %s stays", dir)
		})
		if os.WriteFile(filepath.Join(dir, try.file), fmt.Append(nil, limit), 0o644) == nil {
			return dir
		}
	}
	t.Skip("this machine has no memory cgroup that a test may make")
	return ""
}
