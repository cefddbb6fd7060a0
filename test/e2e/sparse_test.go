//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestSparse: a file system on 1 TiB costs what it writes, holes cost nothing,
// and a volume that is removed gives everything back.
func TestSparse(t *testing.T) {
	rig.RequireLoop(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+fs)
			r := rig.New(t, 3*time.Minute)
			srv := r.Memcached(512)
			store := srv.URL()
			r.Create(store, "other", "16M") // makes the pool, so that only the volume's items differ
			m := r.Mount(store)
			before := srv.Stat("curr_items")
			r.Create(store, "big", "1T")
			dev := m.Attach("big")
			r.Mkfs(fs, dev)
			r.Fsck(fs, dev)
			r.Detach(dev)
			used := srv.Stat("curr_items") - before
			t.Logf("mkfs.%s on 1 TiB stored %d items", fs, used)
			if used <= 0 {
				t.Errorf("mkfs stored nothing?")
			}
			if limit := int64(64 << 20 / rig.BlockSize); used > limit {
				t.Errorf("mkfs stored %d items, more than %d", used, limit)
			}
			m.Umount()
			r.Kvbfs("volume", "rm", "big", "--yes", "--store", store)
			// A claim of the layer id stays for ever.
			rig.Eventually(t, 20*time.Second, "removing the volume frees its blocks", func() bool {
				return srv.Stat("curr_items")-before <= 8
			})
		})
	}
}

// TestHoles: reading what was never written asks no server.
func TestHoles(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	srv := r.Memcached(128)
	r.Create(srv.URL(), "v", "1T")
	m := r.Mount(srv.URL())
	f := rig.Direct(t, m.Image("v"))
	buf := rig.Aligned(1 << 20)
	buf[0] = 1
	if err := f.WriteAt(buf[:rig.BlockSize], 0); err != nil { // the open and the lease are behind us
		t.Fatal(err)
	}
	before := srv.Stat("cmd_get")
	const reads = 64
	for i := range int64(reads) {
		buf[0], buf[len(buf)-1] = 1, 1
		if err := f.ReadAt(buf, (i+1)<<33); err != nil {
			t.Fatal(err)
		}
		if buf[0] != 0 || buf[len(buf)-1] != 0 {
			t.Fatal("a hole is not zeros")
		}
	}
	// A renewal of the lease may fall in between; 16384 blocks were read.
	if n := srv.Stat("cmd_get") - before; n > 8 {
		t.Errorf("%d reads of holes caused %d requests", reads, n)
	}
	// The counter works: a read of data raises it.
	before = srv.Stat("cmd_get")
	if err := f.ReadAt(buf[:rig.BlockSize], 0); err != nil {
		t.Fatal(err)
	}
	if buf[0] != 1 || srv.Stat("cmd_get") == before {
		t.Errorf("reading data: first byte %d, cmd_get unchanged: %v", buf[0], srv.Stat("cmd_get") == before)
	}
	f.Close()
	m.Umount()
}
