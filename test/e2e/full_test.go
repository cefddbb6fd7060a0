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

// TestFull fills a small memcached through ext4: the writer is told that there
// is no space, what was there stays, the journal lives, and removing files and
// trimming makes room again.
func TestFull(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fstrim")
	r := rig.New(t, 3*time.Minute)
	srv := r.Memcached(64)
	r.Create(srv.URL(), "disk", "1G")
	m := r.Mount(srv.URL())
	dev := m.Attach("disk")
	r.Run("mkfs.ext4", "-q", "-F", "-J", "size=4", "-m", "0", dev)
	dir := r.MountFS(dev, "ext4")
	r.Run("cp", "-a", goroot(t, r)+"/src/fmt", filepath.Join(dir, "old"))
	// The file's extents are there before the store is full, and the journal was
	// once round: afterwards both are overwrites, as in any file system with a past.
	// (A journal that was never once round needs new blocks, and ext4 gives up
	// when it cannot have them.)
	r.Run("fallocate", "-l", "200M", filepath.Join(dir, "big"))
	for i := range 600 {
		name := filepath.Join(dir, fmt.Sprintf("turn%d", i%50))
		if err := os.WriteFile(name, []byte(strings.Repeat("x", 100+i%300)), 0o644); err != nil {
			t.Fatal(err)
		}
		r.Run("sync", "-f", dir)
	}
	r.Run("sync", "-f", dir)
	want := rig.ReadTree(t, filepath.Join(dir, "old"))

	res := r.Try("dd", "if=/dev/urandom", "of="+filepath.Join(dir, "big"), "bs=1M", "count=200", "oflag=direct", "conv=notrunc")
	if res.Code == 0 || !strings.Contains(res.Stderr, "No space left on device") {
		t.Fatalf("200 MiB into 64 MiB: status %d, want ENOSPC\n%s", res.Code, res.Stderr)
	}
	// Overwriting in place and touching need no new block, only the journal.
	r.Run("dd", "if=/dev/zero", "of="+filepath.Join(dir, "turn0"), "bs=10", "count=1", "conv=notrunc,fsync")
	r.Run("touch", filepath.Join(dir, "turn1"))
	r.Run("sync", "-f", dir)
	r.Run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "old")))

	r.Run("rm", filepath.Join(dir, "big"))
	r.Run("sync", "-f", dir)
	full := srv.Stat("curr_items")
	r.Run("fstrim", dir)
	rig.Eventually(t, 30*time.Second, "trimming frees items", func() bool { return srv.Stat("curr_items") < full/2 })
	r.Run("dd", "if=/dev/urandom", "of="+filepath.Join(dir, "again"), "bs=1M", "count=20", "oflag=direct")
	r.UmountFS(dir)
	r.Fsck("ext4", dev)
	dir = r.MountFS(dev, "ext4")
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "old")))
	r.UmountFS(dir)
	r.Detach(dev)
	m.Umount()
}
