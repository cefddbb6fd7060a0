//go:build e2e

package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// TestRedisCluster kills a master under an ext4 that is being written to: I/O
// pauses, goes on, and the tree is whole; then slots move to a new master under load.
func TestRedisCluster(t *testing.T) {
	rig.RequireLoop(t)
	for _, transport := range []string{"dev", "uring"} {
		t.Run(transport, func(t *testing.T) {
			if _, err := os.Stat(enableURing); err != nil && transport == "uring" {
				t.Skip("this kernel has no FUSE over io_uring (Linux 6.14)")
			}
			r := rig.New(t, 4*time.Minute)
			r.Transport = transport
			c := redistest.Cluster(t, 3, 1)
			r.Create(c.URL(), "disk", "512M")
			m := r.Mount(c.URL(), "--wait-replicas=1")
			dev := m.Attach("disk")
			r.Mkfs("ext4", dev)
			dir := r.MountFS(dev, "ext4")

			src := goroot(t, r) + "/src/net"
			r.Run("cp", "-a", src, dir+"/a")
			cp := r.Start(rig.Cmd{Args: []string{"sh", "-c", `cp -a "$0" "$1/b" && sync -f "$1" && cp -a "$0" "$1/c" && sync -f "$1"`, src, dir}})
			time.Sleep(300 * time.Millisecond) // it has begun
			dead := c.Servers[1]
			dead.Stop()
			rig.Eventually(t, 30*time.Second, "a replica took over", func() bool { return len(c.Masters()) == 3 })
			dead.Restart() // as a replica, for which flushes wait
			if err := cp.Wait(); err != nil {
				t.Errorf("cp over the death of a master: %v", err)
			}
			added := c.AddMaster(1)
			cp = r.Start(rig.Cmd{Args: []string{"cp", "-a", src, dir + "/d"}})
			c.Move(c.Servers[0], added, 0, 50)
			if err := cp.Wait(); err != nil {
				t.Errorf("cp while slots move: %v", err)
			}
			r.UmountFS(dir)
			dir = r.MountFS(dev, "ext4")
			want := rig.ReadTree(t, src)
			for _, name := range []string{"/a", "/b", "/c", "/d"} {
				rig.SameTree(t, want, rig.ReadTree(t, dir+name))
			}
			r.UmountFS(dir)
			r.Fsck("ext4", dev)
			r.Detach(dev)
			if out := r.Kvbfs("status"); !strings.Contains(out, "durability  server") || strings.Contains(out, "NO ANSWER") {
				t.Errorf("status does not say the durability, or that all answer:\n%s", out)
			}
			m.Umount()
		})
	}
}
