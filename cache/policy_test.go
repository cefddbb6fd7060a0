package cache_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// What is read once, over far more than the cache holds, is not taken in; what is
// read twice soon is; and the memory is bounded.
func TestAdmission(t *testing.T) {
	rng := rand.New(rand.NewPCG(storetest.Seed(t.Logf), 1))
	r := newRig(t, 1, cache.Config{Size: 1 << 20})
	const span, reads, rounds = 16384, 10000, 50 // 64 times the cache
	r.fill(span)
	// Fill it, and then until the second miss decides.
	for range 4 * 256 {
		r.read(rng.Uint64N(span))
	}
	before := r.cache.Stats()
	for range reads {
		n := rng.Uint64N(span)
		r.holds(n, n)
	}
	after := r.cache.Stats()
	if fills := after.Fills - before.Fills; fills > reads/20 {
		t.Errorf("%d of %d misses were taken in", fills, reads)
	}
	if after.Used > after.Capacity || after.Capacity > 1<<20 || after.Used < 200<<10 {
		t.Errorf("%d bytes used of %d, 1 MiB was allowed", after.Used, after.Capacity)
	}
	// Looking is given up, but not for good: a working set that fits is found again.
	hits := 0
	for range rounds {
		for n := range uint64(64) {
			if r.cached(n) {
				hits++
			}
		}
	}
	if hits < rounds*64/2 {
		t.Errorf("%d of %d reads of a quarter of the cache hit after a time of random reads", hits, rounds*64)
	}
}

// Nothing allocates: neither hits nor misses, whether they are admitted or not, nor
// writes and discards of what is cached or not.
func TestAllocations(t *testing.T) {
	if storetest.RaceEnabled {
		t.Skip("the race detector allocates")
	}
	s, ch := overBlackhole(t, 1<<20)
	defer s.Close()
	defer ch.Close()
	const span = 8192
	ops := make([]*kvstore.Op, 32)
	for i := range ops {
		ops[i] = readOp(0)
	}
	at := uint64(0)
	for _, c := range []struct {
		name string
		code kvstore.Code
		step uint64
	}{
		{"hit", kvstore.Read, 0}, {"miss", kvstore.Read, 4099}, {"write of what is cached", kvstore.Write, 0}, {"write", kvstore.Write, 4099},
		{"discard", kvstore.Discard, 4099},
	} {
		for _, try := range []bool{false, true} {
			turn := func() {
				for i := range ops {
					ops[i].Code, ops[i].Key.Number, ops[i].Count = c.code, (at+uint64(i)*37)%span, 1
				}
				at += c.step
				if try {
					ch.Try(ctx, ops)
				} else {
					ch.Do(ctx, ops)
				}
			}
			turn()
			turn()
			// Of 200 batches not one allocates; something else in this process may.
			if n := testing.AllocsPerRun(200, turn); n >= 1 {
				t.Errorf("%s: %.1f allocations per batch", c.name, n)
			}
		}
	}
}

// BenchmarkRead is the cost per block: of a hit; of a miss that is not admitted;
// and of the store below alone, which is what to compare a miss with. With /parallel
// each CPU has a channel of its own: what it costs more than alone is contention.
func BenchmarkRead(b *testing.B) {
	for _, width := range []int{1, 32} {
		for _, c := range []struct {
			name string
			span uint64 // blocks that are read
			off  bool   // past the cache
		}{{"hit", 4096, false}, {"miss", 1 << 18, false}, {"none", 1 << 18, true}} {
			b.Run(c.name+map[int]string{1: "/1", 32: "/32"}[width], func(b *testing.B) { benchRead(b, width, c.span, c.off) })
			if width == 32 {
				b.Run(c.name+"/32/parallel", func(b *testing.B) { benchParallel(b, width, c.span, c.off) })
			}
		}
	}
}

func benchParallel(b *testing.B, width int, span uint64, off bool) {
	s, ch := overBlackhole(b, 20<<20)
	defer s.Close()
	defer ch.Close()
	warm := turns(ch, width, span, off, 1)
	for range 20000 {
		warm()
	}
	var readers atomic.Uint32
	b.SetBytes(kvstore.BlockSize)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		mine, err := s.Channel(context.Background())
		if err != nil {
			b.Error(err)
			return
		}
		defer mine.Close()
		turn := turns(mine, width, span, off, readers.Add(1))
		for n := 0; pb.Next(); n++ {
			if n%width == 0 {
				turn()
			}
		}
	})
}

// turns returns what does one batch of random reads.
func turns(ch kvstore.Channel, width int, span uint64, off bool, reader uint32) func() {
	ops := make([]*kvstore.Op, width)
	for i := range ops {
		ops[i] = readOp(0)
		if ops[i].Reader = reader; off {
			ops[i].Reader = 0
		}
	}
	at := uint64(reader) * 7919
	return func() {
		for _, op := range ops {
			at += 40503
			op.Key.Number = at % span
		}
		ch.Do(ctx, ops)
	}
}

// overBlackhole is a cache over a store that answers at once, and a channel.
func overBlackhole(t testing.TB, size int64) (*cache.Store, kvstore.Channel) {
	t.Helper()
	s := wrap(t, blackhole{}, cache.Config{Size: size, ReadAhead: 256 << 10})
	if err := s.Join(storetest.Place(1)); err != nil {
		t.Fatal(err)
	}
	s.Opened(layer)
	ch, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s, ch
}

func benchRead(b *testing.B, width int, span uint64, off bool) {
	s, ch := overBlackhole(b, 20<<20)
	defer s.Close()
	defer ch.Close()
	turn := turns(ch, width, span, off, 1)
	for range 20000 {
		turn()
	}
	b.SetBytes(kvstore.BlockSize)
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += width {
		turn()
	}
}

// blackhole is a store that answers every read at once.
type blackhole struct{ kvstore.Store }

func (blackhole) Join(kvstore.Placement) error { return nil }
func (blackhole) Servers() []string            { return []string{"nowhere"} }
func (blackhole) Close() error                 { return nil }
func (blackhole) Rewinds() uint64              { return 0 }
func (blackhole) Silent(kvstore.Key) bool      { return false }
func (blackhole) Haunted(kvstore.Key) bool     { return false }
func (blackhole) Channel(context.Context) (kvstore.Channel, error) {
	return blackholeChannel{}, nil
}

type blackholeChannel struct{ kvstore.Channel }

func (blackholeChannel) Do(_ context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		op.Err = nil
	}
}

// Try leaves nothing.
func (c blackholeChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}
func (blackholeChannel) Close() error { return nil }
