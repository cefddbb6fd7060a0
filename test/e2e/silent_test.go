//go:build e2e

package e2e

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestSilentServer: while one of two servers is stopped, with requests for it
// waiting, reads and writes of blocks on the other one go on as if nothing was;
// when it goes on, what waited succeeds.
func TestSilentServer(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 8*time.Minute)
	servers := byLeases(r.MemcachedTCP(128), r.MemcachedTCP(128))
	store := "memcached://" + servers[0].Addr + "," + servers[1].Addr
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	defer f.Close()
	const blocks = 1024
	fill(t, f, blocks, 1)
	var on [2][]int64 // blocks by server
	for b := int64(0); b < blocks; b += 32 {
		at := r.Where(store, "v", b*rig.BlockSize)
		for i, s := range servers {
			if at.Server == s.Addr {
				for k := range int64(32) {
					on[i] = append(on[i], b+k)
				}
			}
		}
	}
	if len(on[0]) < 100 || len(on[1]) < 100 {
		t.Fatalf("%d and %d blocks on the two servers", len(on[0]), len(on[1]))
	}
	servers[1].Stop()
	var stuck sync.WaitGroup
	errs := make(chan error, 40)
	for i := range 40 {
		stuck.Go(func() {
			buf := rig.Aligned(rig.BlockSize)
			b := on[1][i*len(on[1])/40]
			if i%2 == 0 {
				errs <- f.ReadAt(buf, b*rig.BlockSize)
				return
			}
			rig.Stamp(buf, b, 2)
			if err := f.WriteAt(buf, b*rig.BlockSize); err != nil || !r.Defers() { // else it does not wait
				errs <- err
			}
		})
	}
	// More rounds than there are stragglers, lanes or entries of a queue.
	var alive sync.WaitGroup
	var written atomic.Int64
	for w := range 4 {
		alive.Go(func() {
			buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
			for round := range uint64(40) {
				for i := w; i < len(on[0]); i += 4 {
					b := on[0][i]
					rig.Stamp(buf, b, round)
					if err := f.WriteAt(buf, b*rig.BlockSize); err != nil {
						t.Errorf("write of a block on the server that answers: %v", err)
						return
					}
					written.Add(1)
					rig.Stamp(want, b, round)
					if err := f.ReadAt(buf, b*rig.BlockSize); err != nil || string(buf) != string(want) {
						t.Errorf("read of a block on the server that answers: %v", err)
						return
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { alive.Wait(); close(done) }()
	// How long it takes is the machine's business; that it gets on is what counts.
watch:
	for before := int64(-1); ; {
		select {
		case <-done:
			break watch
		case <-time.After(30 * time.Second):
			now := written.Load()
			if now == before {
				t.Error("blocks on the server that answers wait for the one that is stopped")
				break watch
			}
			before = now
		}
	}
	select {
	case err := <-errs:
		t.Errorf("a request of the stopped server ended: %v", err)
	default:
	}
	servers[1].Continue()
	<-done
	stuck.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Errorf("a request that waited for the stopped server: %v", err)
		}
	}
}
