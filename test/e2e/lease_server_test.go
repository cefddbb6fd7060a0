//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// byLeases orders the servers of a pool as its record does: the first one has the leases.
func byLeases(servers ...*rig.Memcached) []*rig.Memcached {
	slices.SortFunc(servers, func(x, y *rig.Memcached) int { return strings.Compare(x.Addr, y.Addr) })
	return servers
}

// TestLeaseServerStopped: while the server that has the leases is stopped, reads of the
// other one's blocks go on, and writes to it until the lease runs out. Then they wait, as
// another machine may have taken it over, and it is said for what; nothing fails.
func TestLeaseServerStopped(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*time.Minute)
	servers := byLeases(r.MemcachedTCP(128), r.MemcachedTCP(128))
	store := "memcached://" + servers[0].Addr + "," + servers[1].Addr
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	defer f.Close()
	const blocks = 2048
	fill(t, f, blocks, 1)
	alive := int64(-1)
	for b := int64(0); alive < 0 && b < blocks; b += 32 {
		if r.Where(store, "v", b*rig.BlockSize).Server == servers[1].Addr {
			alive = b
		}
	}
	if alive < 0 {
		t.Fatal("no block is on the other server")
	}
	servers[0].Stop()
	ended := make(chan error, 1)
	buf := rig.Aligned(rig.BlockSize)
	write := func(version uint64) {
		rig.Stamp(buf, alive, version)
		go func() { ended <- f.WriteAt(buf, alive*rig.BlockSize) }()
	}
	version := uint64(2)
	write(version)
	rig.Eventually(t, time.Minute, "a write waits for the lease, and the status says so", func() bool {
		select {
		case err := <-ended:
			must(t, err)
			version++
			write(version)
		default:
		}
		time.Sleep(100 * time.Millisecond)
		return strings.Contains(r.Kvbfs("status"), "the volume's lease, which ran out and is being renewed at "+servers[0].Addr)
	})
	if version == 2 {
		t.Error("no write to the other server went through before the lease ran out")
	}
	got := rig.Aligned(rig.BlockSize)
	must(t, f.ReadAt(got, (alive+1)*rig.BlockSize))
	servers[0].Continue()
	must(t, <-ended)
	must(t, f.Sync())
	must(t, f.ReadAt(got, alive*rig.BlockSize))
	if string(got) != string(buf) {
		t.Error("what was written when the lease was renewed is not there")
	}
}
