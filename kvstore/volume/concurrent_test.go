package volume

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// inParallel runs f in n goroutines with a worker each.
func (r *rig) inParallel(n int, f func(i int, w *Worker)) {
	var wg sync.WaitGroup
	for i := range n {
		w, err := r.set.Worker(ctx)
		must(r.t, err)
		wg.Go(func() {
			f(i, w)
			if err := w.Close(); err != nil {
				r.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestVersions: each block has one owner that writes versions or discards; any
// worker reads any block and must find a version between the last one that was
// acknowledged before and the last one that was begun after, whole.
func TestVersions(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		const blocks, workers, rounds = 64, 4, 150
		seed := storetest.Seed(t.Logf)
		r.create("v", blocks*kvstore.BlockSize)
		v := r.open("v")
		var begun, acked [blocks]atomic.Uint64
		dropped := func(ver uint64) bool { return ver == 0 || ver%5 == 3 }
		r.inParallel(workers, func(i int, w *Worker) {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for range rounds {
				var reqs []*Request
				from := map[*Request]uint64{}
				mine := map[int]uint64{}
				for range 1 + rnd.IntN(8) {
					b := rnd.IntN(blocks)
					req := &Request{Vol: v, Off: int64(b) * kvstore.BlockSize, N: kvstore.BlockSize}
					if rnd.IntN(2) == 0 {
						if b = b/workers*workers + i; mine[b] != 0 {
							continue
						}
						req.Off = int64(b) * kvstore.BlockSize
						ver := begun[b].Add(1)
						mine[b] = ver
						if req.Kind = Discard; !dropped(ver) {
							req.Kind = Write
							req.Data = bytes.Repeat(binary.LittleEndian.AppendUint64(nil, ver), kvstore.BlockSize/8)
						}
					} else {
						req.Kind, req.Data = Read, make([]byte, kvstore.BlockSize)
						from[req] = acked[b].Load()
					}
					reqs = append(reqs, req)
				}
				if rnd.IntN(10) == 0 {
					reqs = append(reqs, &Request{Kind: Flush, Vol: v})
				}
				w.Do(ctx, reqs)
				for b, ver := range mine {
					acked[b].Store(ver)
				}
				for _, req := range reqs {
					if req.Err != nil {
						t.Error(req.Err)
					}
					if req.Kind != Read {
						continue
					}
					b := req.Off / kvstore.BlockSize
					got := binary.LittleEndian.Uint64(req.Data)
					if !bytes.Equal(req.Data, bytes.Repeat(req.Data[:8], kvstore.BlockSize/8)) {
						t.Errorf("block %d is torn", b)
					}
					lo, hi := from[req], begun[b].Load()
					ok := got >= lo && got <= hi && !dropped(got)
					for ver := lo; got == 0 && ver <= hi; ver++ {
						ok = ok || dropped(ver)
					}
					if !ok {
						t.Errorf("block %d reads version %d, must be in %d..%d", b, got, lo, hi)
					}
				}
				if i == 0 && rnd.IntN(4) == 0 && v.m.Load() != nil {
					if err := r.set.withChannel(ctx, func(ch kvstore.Channel) error { return v.reap(ctx, ch) }); err != nil {
						t.Error(err)
					}
				}
			}
		})
	})
}

// TestNeighbours: sectors of the same blocks belong to different workers, whose
// partial writes must leave each other's alone.
func TestNeighbours(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		const blocks, workers, sector = 8, 4, 512
		r.create("v", blocks*kvstore.BlockSize)
		v := r.open("v")
		r.inParallel(workers, func(i int, w *Worker) {
			rnd := rand.New(rand.NewPCG(7, uint64(i)))
			var have [blocks * kvstore.BlockSize / sector]byte
			for n := range 150 {
				var reqs []*Request
				did := map[int]bool{}
				for range 4 {
					s := rnd.IntN(len(have)/workers)*workers + i
					if did[s] {
						continue
					}
					did[s] = true
					have[s] = byte(n + i)
					reqs = append(reqs, &Request{Kind: Write, Vol: v, Off: int64(s) * sector, Data: bytes.Repeat([]byte{have[s]}, sector)})
				}
				w.Do(ctx, reqs)
				s := rnd.IntN(len(have)/workers)*workers + i
				got := &Request{Kind: Read, Vol: v, Off: int64(s) * sector, Data: make([]byte, sector)}
				w.Do(ctx, []*Request{got})
				for _, req := range append(reqs, got) {
					if req.Err != nil {
						t.Error(req.Err)
					}
				}
				if !bytes.Equal(got.Data, bytes.Repeat([]byte{have[s]}, sector)) {
					t.Errorf("sector %d: %x, want %x", s, got.Data[0], have[s])
				}
			}
		})
	})
}

// TestPartialAgainstDiscard: a partial write and a discard of the same block at
// the same time must not leave what the discard dropped.
func TestPartialAgainstDiscard(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 16*kvstore.BlockSize)
		v := r.open("v")
		w2, err := r.set.Worker(ctx)
		must(t, err)
		for n := range 300 {
			old := pattern(kvstore.BlockSize, byte(n))
			r.write(v, 4096, old)
			part := bytes.Repeat([]byte{0xaa}, 512)
			wr := &Request{Kind: Write, Vol: v, Off: 4096 + 1024, Data: part}
			dis := &Request{Kind: Discard, Vol: v, Off: 0, N: 8 * 4096}
			var wg sync.WaitGroup
			wg.Go(func() { r.w.Do(ctx, []*Request{wr}) })
			wg.Go(func() { w2.Do(ctx, []*Request{dis}) })
			wg.Wait()
			must(t, wr.Err)
			must(t, dis.Err)
			got := r.read(v, 4096, 4096)
			mid := got[1024:1536]
			if !zero(got[:1024]) || !zero(got[1536:]) || (!zero(mid) && !bytes.Equal(mid, part)) {
				t.Fatalf("round %d: what was discarded is back", n)
			}
		}
		must(t, w2.Close())
	})
}

// TestDiscardInsideModify puts the discard exactly between the read and the
// write of a read-modify-write, and again after the first write.
func TestDiscardInsideModify(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 16*kvstore.BlockSize)
	v := r.open("v")
	for _, at := range []kvstore.Code{kvstore.Read, kvstore.Write} {
		r.write(v, 0, pattern(4096, 3))
		done := false
		after := func(ops []*kvstore.Op) {
			if !done && ops[0].Code == at {
				done = true
				v.m.Load().clear(0, 1)
			}
		}
		r.store.after.Store(&after)
		r.write(v, 512, bytes.Repeat([]byte{5}, 512))
		r.store.after.Store(nil)
		want := make([]byte, 4096)
		copy(want[512:], bytes.Repeat([]byte{5}, 512))
		if got := r.read(v, 0, 4096); !bytes.Equal(got, want) {
			t.Fatalf("discard after %d: %s", at, firstDiff(got, want))
		}
	}
}

// TestDiscardInsideRead: a read whose block is discarded before its answer comes gives
// zeros: the answer may be of a write that nobody else sees yet.
func TestDiscardInsideRead(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 16*kvstore.BlockSize)
	v := r.open("v")
	for _, from := range []int64{0, 512} {
		r.write(v, 0, pattern(4096, 3))
		after := func([]*kvstore.Op) { v.m.Load().clear(0, 1) }
		r.store.after.Store(&after)
		got := r.read(v, from, 4096-from)
		r.store.after.Store(nil)
		if !zero(got) {
			t.Fatalf("a read from %d saw a block that was discarded meanwhile", from)
		}
	}
}

// TestSameBlockInOneBatch: requests of one Do that meet on one block are all
// done, in some order.
func TestSameBlockInOneBatch(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 4096*kvstore.BlockSize)
		v := r.open("v")
		var reqs []*Request
		for i := range 60 {
			reqs = append(reqs,
				&Request{Kind: Write, Vol: v, Off: int64(i%4)*4096 + int64(i%8)*512, Data: bytes.Repeat([]byte{9}, 512)},
				&Request{Kind: Read, Vol: v, Off: int64(i % 4 * 4096), Data: make([]byte, 4096)})
		}
		// And as many blocks as fill several batches.
		reqs = append(reqs, &Request{Kind: Write, Vol: v, Off: 1 << 20, Data: pattern(1500*4096, 1)})
		r.w.Do(ctx, reqs)
		for _, req := range reqs {
			must(t, req.Err)
		}
		for b := range int64(4) {
			for s := range int64(8) {
				got := r.read(v, b*4096+s*512, 512)
				if s%4 == b && got[0] != 9 {
					t.Fatalf("block %d sector %d was lost", b, s)
				}
			}
		}
		if got := r.read(v, 1<<20, 1500*4096); !bytes.Equal(got, pattern(1500*4096, 1)) {
			t.Fatal(firstDiff(got, pattern(1500*4096, 1)))
		}
	})
}
