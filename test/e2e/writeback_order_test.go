//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestWriteBackOrder writes and flushes from several sides with write-back, and then
// looks at every single moment of what memcached acknowledged: if the daemon, or the
// machine, had crashed there, each block would be whole, none would be older than one
// that was there before, and everything that was acknowledged before a flush would be
// there from the end of that flush on, so before anything that was written after it.
func TestWriteBackOrder(t *testing.T) {
	rig.RequireFUSE(t)
	const writers, each, rounds, between = 4, 64, 40, 24
	const blocks = writers * each
	r := rig.New(t, 2*time.Minute)
	r.CacheMode = "writeback"
	rec := r.Record(r.Memcached(128))
	r.Create(rec.URL(), "v", "64M")
	// Little may be dirty, and not for long: much is stored without a flush, too.
	m := r.Mount(rec.URL(), "--max-dirty=128K", "--max-dirty-age=5ms")
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, blocks, 1)
	begin := rec.Position()

	// A floor is what a flush covers: from at on in the log.
	type floor struct {
		at       int
		versions [blocks]uint64
	}
	var mu sync.Mutex
	var floors []floor
	var acknowledged, sent [blocks]atomic.Uint64
	for i := range blocks {
		acknowledged[i].Store(1)
		sent[i].Store(1)
	}
	seed := rig.Rand(t).Uint64()
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			buf := rig.Aligned(rig.BlockSize)
			for n := range uint64(rounds * between) {
				b := int64((seed+n*n*31+n*7)%each)*writers + w
				v := sent[b].Add(1) // nobody else writes to it
				rig.Stamp(buf, b, v)
				if err := f.WriteAt(buf, b*rig.BlockSize); err != nil {
					t.Errorf("block %d: %v", b, err)
					return
				}
				acknowledged[b].Store(v)
				if n%between != between-1 {
					continue
				}
				var fl floor
				for i := range fl.versions {
					fl.versions[i] = acknowledged[i].Load()
				}
				if err := f.Sync(); err != nil {
					t.Errorf("flush: %v", err)
					return
				}
				fl.at = rec.Position()
				mu.Lock()
				floors = append(floors, fl)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	st := writeBackStats(t, m)
	f.Close()
	m.Umount()
	if st.Deferred < writers*rounds*between/4 {
		t.Errorf("not much was deferred, so it is not much of a test: %+v", st)
	}

	due := map[int][]floor{}
	for _, fl := range floors {
		due[fl.at] = append(due[fl.at], fl)
	}
	var now [blocks]uint64
	want := make([]byte, rig.BlockSize)
	log := rec.Log()
	for at, c := range log {
		if b := c.LBA; b >= 0 && b < blocks {
			if len(c.Value) != rig.BlockSize {
				t.Fatalf("change %d: block %d was deleted, or has %d bytes", at, b, len(c.Value))
			}
			v := binary.LittleEndian.Uint64(c.Value[8:])
			if rig.Stamp(want, b, v); !bytes.Equal(want, c.Value) || v < now[b] || v > sent[b].Load() {
				t.Fatalf("change %d: block %d becomes version %d after %d, whole %v", at, b, v, now[b], bytes.Equal(want, c.Value))
			}
			now[b] = v
		}
		for _, fl := range due[at+1] {
			for b, v := range fl.versions {
				if now[b] < v {
					t.Fatalf("after %d changes a flush was over that covers version %d of block %d, and the store has version %d", at+1, v, b, now[b])
				}
			}
		}
	}
	t.Logf("%d moments, %d flushes, %+v", len(log)-begin, len(floors), st)
}
