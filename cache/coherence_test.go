package cache_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// What is read twice comes from memory, what is written is read, on all channels.
func TestReadAfterWrite(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	other := r.channel()
	r.write(1, 1)
	if r.cached(1) {
		t.Error("the first read came from memory")
	}
	if !r.cached(1) {
		t.Error("the second read did not come from memory")
	}
	op := writeOp(1, 2)
	if other.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
	r.holds(1, 2)
	if !r.cached(1) {
		t.Error("a write of a cached block put it out of the cache")
	}
	gone := &kvstore.Op{Code: kvstore.Discard, Key: key(1)}
	if other.Do(ctx, []*kvstore.Op{gone}); gone.Err != nil {
		t.Fatal(gone.Err)
	}
	op = readOp(1)
	if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrAbsent) {
		t.Errorf("read of a discarded block: %v", op.Err)
	}
}

// A read that is under way while its block is changed fills nothing: the read is
// held after the store answered it, the block changed, and the read let go.
func TestChangeKillsFill(t *testing.T) {
	for name, change := range map[string]func(r *rig, ch kvstore.Channel){
		"write": func(r *rig, ch kvstore.Channel) {
			op := writeOp(1, 2)
			if ch.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
				t.Error(op.Err)
			}
		},
		"discard and write": func(r *rig, ch kvstore.Channel) {
			for _, op := range []*kvstore.Op{{Code: kvstore.Discard, Key: key(1)}, writeOp(1, 2)} {
				if ch.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
					t.Error(op.Err)
				}
			}
		},
		"opened anew": func(r *rig, ch kvstore.Channel) {
			// Another machine wrote meanwhile: past this cache.
			below, err := r.mem.Channel(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			op := writeOp(1, 2)
			if below.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
				t.Error(op.Err)
			}
			r.cache.Opened(layer)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, cache.Config{Size: 4 << 20})
			r.write(1, 1)
			held, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			r.under.set(nil, func(ops []*kvstore.Op) {
				if ops[0].Code == kvstore.Read {
					once.Do(func() { close(held); <-release })
				}
			})
			other := r.channel()
			op := readOp(1)
			done := in(func() { other.Do(ctx, []*kvstore.Op{op}) })
			within(t, held, "the read")
			change(r, r.ch)
			close(release)
			within(t, done, "the read")
			if v, _ := version(op.Data); op.Err != nil || v != 1 {
				t.Fatalf("the read that was held: version %d, %v", v, op.Err)
			}
			r.holds(1, 2)
			r.holds(1, 2)
		})
	}
}

// While a write is under way nothing of its block is filled: a read that began
// after it and was executed before it would put the old block there for ever.
func TestNoFillDuringWrite(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	r.write(1, 1)
	held, release := make(chan struct{}), make(chan struct{})
	r.under.set(func(ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Write {
			close(held)
			<-release
		}
	}, nil)
	other := r.channel()
	op := writeOp(1, 2)
	done := in(func() { other.Do(ctx, []*kvstore.Op{op}) })
	within(t, held, "the write")
	r.holds(1, 1)
	if r.cached(1) {
		t.Error("a block was cached while a write of it was under way")
	}
	close(release)
	within(t, done, "the write")
	r.holds(1, 2)
}

// What Try leaves is settled by Finish: a read fills then, and a write keeps its
// block from being filled until then. What Try did is settled at once.
func TestTryLeaves(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	for n := range uint64(4) {
		r.write(n, 1)
	}
	r.read(2)
	r.under.slow = map[uint64]bool{1: true, 2: true}
	slow := r.channel()
	ops := []*kvstore.Op{readOp(0), readOp(1), writeOp(2, 2), readOp(3)}
	if slow.Try(ctx, ops) {
		t.Fatal("Try left nothing")
	}
	for i, want := range []error{nil, kvstore.ErrPending, kvstore.ErrPending, nil} {
		if ops[i].Err != want {
			t.Errorf("operation %d after Try: %v, want %v", i, ops[i].Err, want)
		}
	}
	clear(ops[0].Data) // it is ours again
	r.holds(0, 1)
	if !r.cached(0) || !r.cached(3) {
		t.Error("what Try did is not cached")
	}
	r.holds(2, 1)
	if r.cached(2) {
		t.Error("a block was cached while a write of it was left")
	}
	slow.Finish(ctx)
	for i, op := range ops {
		if op.Err != nil {
			t.Errorf("operation %d after Finish: %v", i, op.Err)
		}
	}
	if v, _ := version(ops[1].Data); v != 1 {
		t.Errorf("the read that was left: version %d", v)
	}
	r.holds(2, 2)
	if !r.cached(1) || !r.cached(2) {
		t.Error("nothing is cached of what Finish did")
	}
}

// What Try left is settled when its server answers, and not before.
func TestTryGoesOn(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	for n := range uint64(4) {
		r.write(n, 1)
	}
	r.read(2)
	r.under.slow = map[uint64]bool{1: true, 2: true}
	slow := r.channel()
	read, write := readOp(1), writeOp(2, 2)
	if slow.Try(ctx, []*kvstore.Op{read, write}) || slow.Try(ctx, nil) {
		t.Fatal("Try left nothing")
	}
	delete(r.under.slow, 1)
	if slow.Try(ctx, nil) || read.Err != nil || write.Err != kvstore.ErrPending {
		t.Errorf("one server answers: %v, %v", read.Err, write.Err)
	}
	if v, _ := version(read.Data); v != 1 || !r.cached(1) || r.cached(2) {
		t.Errorf("version %d, cached: %v and %v", v, r.cached(1), r.cached(2))
	}
	delete(r.under.slow, 2)
	if !slow.Try(ctx, nil) || write.Err != nil || !r.cached(2) {
		t.Errorf("both answer: %v", write.Err)
	}
	r.holds(2, 2)
	read = readOp(3)
	if !slow.Try(ctx, []*kvstore.Op{read}) || read.Err != nil {
		t.Errorf("the next batch: %v", read.Err)
	}
}

// A failed write leaves nothing of its block in memory: the store may have either.
func TestFailedWrite(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	r.write(1, 1)
	r.read(1)
	r.under.set(nil, func(ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Write {
			ops[0].Err = kvstore.ErrTimeout // it was executed all the same
		}
	})
	op := writeOp(1, 2)
	if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrTimeout) {
		t.Fatal(op.Err)
	}
	r.holds(1, 2)
	r.under.set(nil, nil)
	r.holds(1, 2)
	op = writeOp(1, 3)
	op.Fence = new(kvstore.Fence) // closed
	if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrFenced) {
		t.Fatal(op.Err)
	}
	r.holds(1, 2)
}

// A panic below leaves nothing behind once its channel is closed: blocks whose
// reads and writes it ended are read and cached again.
func TestPanicLeavesNothing(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 1})
	for n := range uint64(4) {
		r.write(n, 1)
	}
	r.read(0)
	broken, err := r.cache.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.under.set(func([]*kvstore.Op) { panic("planted") }, nil)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not arrive")
			}
		}()
		broken.Do(ctx, []*kvstore.Op{writeOp(0, 2), readOp(1), writeOp(2, 2), {Code: kvstore.Discard, Key: key(3), Count: 1}})
	}()
	r.under.set(nil, nil)
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(4) {
		r.holds(n, 1)
		if !r.cached(n) {
			t.Errorf("block %d is not cached any more", n)
		}
	}
}

// A block that somebody found lost or corrupt is not served from memory, nor
// anything after a server was found emptied.
func TestLostIsNotServed(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	for n := range uint64(4) {
		r.write(n, n+1)
		r.read(n)
	}
	if !r.cached(1) || !r.cached(2) || !r.cached(3) {
		t.Fatal("the blocks are not cached")
	}
	for n, want := range map[uint64]error{1: kvstore.ErrAbsent, 2: kvstore.ErrCorrupt} {
		if n == 1 {
			r.mem.Drop(key(n))
		} else {
			r.mem.Corrupt(key(n))
		}
		if !r.cached(n) {
			t.Fatalf("block %d is not served while nobody knows", n)
		}
		look := readOp(n)
		look.Reader = 0 // as scrub looks
		if r.ch.Do(ctx, []*kvstore.Op{look}); !errors.Is(look.Err, want) {
			t.Fatalf("the store itself says of block %d: %v, want %v", n, look.Err, want)
		}
		op := readOp(n)
		if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, want) {
			t.Errorf("read of block %d after it was found: %v, want %v", n, op.Err, want)
		}
	}
	r.mem.Forget(0)
	if !r.cached(3) {
		t.Fatal("block 3 is not served while nobody knows")
	}
	if err := r.ch.Flush(ctx, layer); !errors.Is(err, kvstore.ErrServerLost) {
		t.Fatal(err)
	}
	op := readOp(3)
	if r.ch.Do(ctx, []*kvstore.Op{op}); op.Err == nil {
		t.Error("a block of an emptied server came from memory after the flush that found it")
	}
}

// One writer per block and many readers, over a store that answers late: a read is
// never older than what was acknowledged before it began or than what the same
// reader saw, never torn, and never from the future.
func TestHistories(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  cache.Config
	}{
		{"small", cache.Config{Size: 1}},
		{"large", cache.Config{Size: 8 << 20}},
		{"read-ahead", cache.Config{Size: 200 << 10, ReadAhead: 1 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) { histories(t, c.cfg) })
	}
}

func histories(t *testing.T, cfg cache.Config) {
	seed := storetest.Seed(t.Logf)
	r := newRig(t, 3, cfg)
	const blocks, readers, rounds = 48, 4, 1500
	var begun, acked [blocks]atomic.Uint64
	for n := range uint64(blocks) {
		r.write(n, 1)
		begun[n].Store(1)
		acked[n].Store(1)
	}
	late := func([]*kvstore.Op) {
		switch rand.IntN(16) {
		case 0:
			time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
		case 1:
			for range rand.IntN(2000) {
				_ = rand.Uint32()
			}
		}
	}
	r.under.set(late, late)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range uint64(2) {
		ch := r.channel()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, w))
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := rng.Uint64N(blocks/2)*2 + w
				v := begun[n].Add(1)
				op := writeOp(n, v)
				if rng.IntN(8) == 0 {
					gone := &kvstore.Op{Code: kvstore.Discard, Key: key(n)}
					if ch.Do(ctx, []*kvstore.Op{gone}); gone.Err != nil {
						t.Error(gone.Err)
					}
				}
				if ch.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
					t.Error(op.Err)
				}
				acked[n].Store(v)
			}
		})
	}
	var reading sync.WaitGroup
	for w := range uint64(readers) {
		ch := r.channel()
		reading.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 100+w))
			var seen, least [blocks]uint64
			first := uint64(0)
			for range rounds {
				if rng.IntN(4) == 0 {
					first = rng.Uint64N(blocks)
				}
				var ops []*kvstore.Op
				for n := first; n < min(first+8, blocks); n++ {
					ops = append(ops, readOp(n))
					least[n] = max(seen[n], acked[n].Load())
				}
				ch.Do(ctx, ops)
				for _, op := range ops {
					n := op.Key.Number
					if errors.Is(op.Err, kvstore.ErrAbsent) {
						continue // between a discard and the write behind it
					}
					v, whole := version(op.Data)
					if op.Err != nil || !whole || v < least[n] || v > begun[n].Load() {
						t.Errorf("block %d: version %d (whole: %v, %v), want %d to %d", n, v, whole, op.Err, least[n], begun[n].Load())
						return
					}
					seen[n] = v
				}
				if first += 8; first >= blocks {
					first = 0
				}
			}
		})
	}
	reading.Wait()
	close(stop)
	wg.Wait()
	st := r.cache.Stats()
	t.Logf("%d hits, %d misses, %d evicted, read ahead %+v", st.Hits, st.Misses, st.Evicted, st.ReadAhead)
	if st.Hits == 0 || st.Misses == 0 {
		t.Error("the histories were not about the cache")
	}
	for n := range uint64(blocks) {
		r.holds(n, acked[n].Load())
	}
}

// A server that may have gone back in time: what was cached of before is not served
// any more, by no channel, and a read that was under way fills nothing.
func TestRewind(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	r.write(1, 2)
	r.write(2, 2)
	r.holds(1, 2)
	if !r.cached(1) {
		t.Error("block 1 is not cached")
	}
	held, release := make(chan struct{}), make(chan struct{})
	r.under.set(nil, func(ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Read && ops[0].Key == key(2) {
			r.under.set(nil, nil)
			close(held)
			<-release
		}
	})
	other := r.channel()
	op := readOp(2)
	done := in(func() { other.Do(ctx, []*kvstore.Op{op}) })
	within(t, held, "the read")
	below, err := r.mem.Channel(ctx) // past the cache: the store is of before now
	if err != nil {
		t.Fatal(err)
	}
	defer below.Close()
	for n := range uint64(2) {
		old := writeOp(n+1, 1)
		if below.Do(ctx, []*kvstore.Op{old}); old.Err != nil {
			t.Fatal(old.Err)
		}
	}
	r.under.rewinds.Add(1)
	for range 2 {
		r.holds(1, 1)
	}
	close(release)
	within(t, done, "the read")
	for range 2 {
		r.holds(2, 1)
	}
	if !r.cached(1) || !r.cached(2) {
		t.Error("nothing is cached any more")
	}
}
