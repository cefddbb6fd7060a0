package cache_test

import (
	"context"
	"math/rand/v2"
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

// Neither hits nor misses allocate, whether they are admitted or not.
func TestAllocations(t *testing.T) {
	if storetest.RaceEnabled {
		t.Skip("the race detector allocates")
	}
	r := newRig(t, 1, cache.Config{Size: 1 << 20, ReadAhead: 256 << 10})
	const span = 8192
	r.fill(span)
	ops := make([]*kvstore.Op, 32)
	for i := range ops {
		ops[i] = readOp(0)
	}
	at := uint64(0)
	for name, step := range map[string]uint64{"hit": 0, "miss": 4099} {
		turn := func() {
			for i := range ops {
				ops[i].Key.Number = (at + uint64(i)*37) % span
			}
			at += step
			r.ch.Do(ctx, ops)
		}
		turn()
		turn()
		if n := testing.AllocsPerRun(200, turn); n >= 1 {
			t.Errorf("%s: %.1f allocations per batch", name, n)
		}
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
	}
}

// BenchmarkRead is the cost per block: of a hit; of a miss that is not admitted;
// and of the store below alone, which is what to compare a miss with.
func BenchmarkRead(b *testing.B) {
	for _, width := range []int{1, 32} {
		for _, c := range []struct {
			name string
			span uint64 // blocks that are read
			off  bool   // past the cache
		}{{"hit", 4096, false}, {"miss", 1 << 18, false}, {"none", 1 << 18, true}} {
			b.Run(c.name+map[int]string{1: "/1", 32: "/32"}[width], func(b *testing.B) { benchRead(b, width, c.span, c.off) })
		}
	}
}

func benchRead(b *testing.B, width int, span uint64, off bool) {
	s, err := cache.Wrap(blackhole{}, cache.Config{Size: 20 << 20, ReadAhead: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Join(storetest.Place(1)); err != nil {
		b.Fatal(err)
	}
	s.Opened(layer)
	ch, err := s.Channel(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	defer ch.Close()
	ops := make([]*kvstore.Op, width)
	for i := range ops {
		ops[i] = readOp(0)
		if off {
			ops[i].Reader = 0
		}
	}
	at := uint64(0)
	turn := func() {
		for _, op := range ops {
			at += 40503
			op.Key.Number = at % span
		}
		ch.Do(ctx, ops)
	}
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
func (blackhole) Channel(context.Context) (kvstore.Channel, error) {
	return blackholeChannel{}, nil
}

type blackholeChannel struct{ kvstore.Channel }

func (blackholeChannel) Do(_ context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		op.Err = nil
	}
}
func (blackholeChannel) Close() error { return nil }
