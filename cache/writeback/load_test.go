package writeback

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A panic below a flush leaves what was on its way dirty, and the next flush stores it.
func TestPanic(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(2)
	r.deferred(1, 2)
	r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
		if len(ops) > 0 && ops[0].Code == kvstore.Write {
			panic("planted")
		}
		return nil
	})
	ch := r.channel()
	err := kvstore.Contain(func() error { return ch.Flush(ctx, layerID) })
	if !errors.Is(err, kvstore.ErrPanic) {
		t.Fatalf("flush: %v", err)
	}
	_ = ch.Close()
	r.under.set(nil)
	r.holds(1, 2)
	r.flush()
	r.storeHas(1, 2)
}

// The drainer survives a panic below it, says so, and goes on.
func TestDrainerPanic(t *testing.T) {
	r := newRig(t, Config{})
	var log atomic.Int64
	r.store.cfg.Log = func(format string, args ...any) {
		if strings.HasPrefix(format, "panic") {
			log.Add(1)
		}
	}
	r.fill(2)
	var panics atomic.Int64
	r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
		if len(ops) > 0 && ops[0].Code == kvstore.Write && panics.Add(1) == 1 {
			panic("planted")
		}
		return nil
	})
	r.deferred(1, 2)
	until(t, "it is stored", func() bool { return r.store.Stats().Dirty == 0 })
	r.storeHas(1, 2)
	if log.Load() != 1 {
		t.Errorf("%d lines about the panic", log.Load())
	}
}

// Many channels at once, each with its own blocks: reads see the last write, and after
// a flush the store has it.
func TestManyChannels(t *testing.T) {
	r := newRig(t, Config{MaxAge: time.Millisecond, MaxDirty: 100 * kvstore.BlockSize})
	const workers, each = 4, 32
	r.fill(workers * each)
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		ch := r.channel()
		wg.Go(func() {
			have := make([]uint64, each)
			for i := range have {
				have[i] = 1
			}
			for round := uint64(2); round < 300; round++ {
				i := (round * 7 * (w + 1)) % each
				n := w*each + i
				var op *kvstore.Op
				switch round % 8 {
				case 5:
					op = readOp(n)
				case 6:
					if err := ch.Flush(ctx, layerID); err != nil {
						t.Error(err)
						return
					}
					if got := r.stored(n); got != have[i] {
						t.Errorf("after a flush the store has version %d of block %d, want %d", got, n, have[i])
						return
					}
					continue
				case 7: // discarded and made anew
					op = &kvstore.Op{Code: kvstore.Discard, Key: key(n), Count: 1}
					ch.Do(ctx, []*kvstore.Op{op})
					op = &kvstore.Op{Code: kvstore.Write, Expect: kvstore.Absent, Key: key(n), Data: block(round)}
					have[i] = round
				default:
					op = r.overwrite(n, round)
					have[i] = round
				}
				ch.Do(ctx, []*kvstore.Op{op})
				if v, ok := version(op.Data); op.Err != nil || !ok || v != have[i] {
					t.Errorf("block %d: version %d, want %d, whole %v, %v", n, v, have[i], ok, op.Err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A deferred write allocates nothing.
func TestAllocations(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(64)
	n := uint64(0)
	op := r.overwrite(0, 2)
	ops := []*kvstore.Op{op}
	for range 2 { // the map grows once
		for n := range uint64(64) {
			op.Key = key(n)
			r.ch.Do(ctx, ops)
		}
		r.flush()
	}
	if a := testing.AllocsPerRun(60, func() {
		n++
		op.Key = key(n % 64)
		r.ch.Do(ctx, ops)
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkDeferred(b *testing.B) {
	var t testing.T
	r := newRig(&t, Config{MaxAge: never, MaxDirty: 16 << 20})
	r.fill(256)
	op := r.overwrite(0, 2)
	ops := []*kvstore.Op{op}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		op.Key = key(uint64(i % 256))
		r.ch.Do(ctx, ops)
	}
	must(b, r.store.Close())
}
