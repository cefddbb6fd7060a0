package writeback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// Nothing is deferred before a flush succeeded, and nothing but overwrites that say so.
func TestWriteThroughUntilFlush(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.do(&kvstore.Op{Code: kvstore.Write, Expect: kvstore.Absent, Key: key(1), Data: block(1)})
	if r.write(1, 2) {
		t.Error("deferred before the first flush")
	}
	r.storeHas(1, 2)
	r.flush()
	r.deferred(1, 3)
	r.storeHas(1, 2)
	r.holds(1, 3)
	for name, op := range map[string]*kvstore.Op{
		"not deferrable": {Code: kvstore.Write, Expect: kvstore.Present, Key: key(1), Data: block(4)},
		"any":            {Code: kvstore.Write, Deferrable: true, Key: key(1), Data: block(5)},
		"new":            {Code: kvstore.Write, Expect: kvstore.Absent, Deferrable: true, Key: key(2), Data: block(6)},
	} {
		r.do(op)
		if v, _ := version(op.Data); op.Deferred || r.stored(op.Key.Number) != v {
			t.Errorf("%s: was deferred", name)
		}
	}
	r.store.Opened(layerID)
	if r.write(1, 7) {
		t.Error("deferred after the volume was opened anew, before a flush")
	}
}

// A store that may have no room for an overwrite has no write-back.
func TestNeedsReserve(t *testing.T) {
	_, err := Wrap(mem.New(mem.Config{}), Config{})
	if !errors.Is(err, kvstore.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}

// Every read sees what is dirty: over any channel, with a reader or without, also while
// it is being stored.
func TestReadsSeeDirty(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(4)
	r.deferred(2, 7)
	other := r.channel()
	look := func(when string) {
		for name, op := range map[string]*kvstore.Op{"reader": readOp(2), "no reader": {Code: kvstore.Read, Key: key(2), Data: make([]byte, kvstore.BlockSize)}} {
			other.Do(ctx, []*kvstore.Op{op})
			if v, _ := version(op.Data); op.Err != nil || v != 7 {
				t.Errorf("%s, %s: version %d, %v", when, name, v, op.Err)
			}
		}
	}
	look("dirty")
	held, goOn := r.under.holding()
	defer goOn()
	done := in(func() { r.flush() })
	<-held
	look("being stored")
	goOn()
	within(t, done, "the flush")
	look("stored")
	// A version is the store's to tell, so the block is stored first.
	r.deferred(2, 8)
	op := readOp(2)
	op.Versioned = true
	r.do(op)
	if v, _ := version(op.Data); v != 8 || op.Version == 0 {
		t.Errorf("a versioned read: %d, version %d", v, op.Version)
	}
}

// Writes of one block become one of the store.
func TestMerge(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(2)
	before := r.mem.Counters().Writes
	for v := uint64(2); v < 100; v++ {
		r.deferred(1, v)
	}
	r.flush()
	if n := r.mem.Counters().Writes - before; n != 1 {
		t.Errorf("98 writes of one block became %d of the store", n)
	}
	r.storeHas(1, 99)
	if st := r.store.Stats(); st.Deferred != 98 || st.Merged != 97 || st.Stored != 1 || st.Dirty != 0 {
		t.Errorf("%+v", st)
	}
}

// A flush returns when all that was dirty is stored, and asks the store to flush after
// that, not before.
func TestFlushDrains(t *testing.T) {
	r := newRig(t, Config{MaxAge: never, MaxDirty: 8 << 20})
	const blocks = 1500 // more than a batch
	r.fill(blocks)
	for n := range uint64(blocks) {
		r.deferred(n, n+10)
	}
	var left atomic.Int64
	r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
		if ops == nil {
			left.Store(r.store.Stats().Dirty)
		}
		return nil
	})
	left.Store(-1)
	r.flush()
	if left.Load() != 0 {
		t.Errorf("%d bytes were dirty when the store was flushed", left.Load())
	}
	for n := range uint64(blocks) {
		r.storeHas(n, n+10)
	}
}

// A flush waits for what is on its way over another channel, and stores what was
// written over it since.
func TestFlushWaitsForFlying(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(2)
	r.deferred(1, 2)
	held, goOn := r.under.holding()
	defer goOn()
	other := r.channel()
	first := in(func() { must(t, other.Flush(ctx, layerID)) })
	<-held
	r.deferred(1, 3) // beside the one that is flying
	r.holds(1, 3)
	var over atomic.Bool
	second := in(func() { r.flush(); over.Store(true) })
	time.Sleep(20 * time.Millisecond)
	if over.Load() {
		t.Fatal("a flush did not wait for what another one has on its way")
	}
	goOn()
	within(t, first, "the first flush")
	within(t, second, "the second flush")
	r.storeHas(1, 3)
}

// What is dirty for long enough is stored without a flush, and so is what is more than
// half of the room.
func TestDrainer(t *testing.T) {
	t.Run("age", func(t *testing.T) {
		r := newRig(t, Config{MaxAge: time.Millisecond})
		r.fill(8)
		for n := range uint64(8) {
			r.deferred(n, 5)
		}
		until(t, "nothing is dirty", func() bool { return r.store.Stats().Dirty == 0 })
		for n := range uint64(8) {
			r.storeHas(n, 5)
		}
	})
	t.Run("much", func(t *testing.T) {
		r := newRig(t, Config{MaxAge: never, MaxDirty: 64 * kvstore.BlockSize})
		r.fill(64)
		for n := range uint64(64) {
			r.write(n, 5)
		}
		until(t, "less than half is dirty", func() bool { return r.store.Stats().Dirty <= 32*kvstore.BlockSize })
	})
}

// What a flush took and could not store is the drainer's again, which had found nothing
// to do meanwhile.
func TestDrainerAfterFailedFlush(t *testing.T) {
	const age = 50 * time.Millisecond
	t.Run("timeout", func(t *testing.T) {
		r := newRig(t, Config{MaxAge: age})
		r.fill(2)
		_, goOn := r.under.holding()
		defer goOn()
		r.deferred(1, 2)
		short, cancel := context.WithTimeout(ctx, 6*age)
		defer cancel()
		if err := r.ch.Flush(short, layerID); !errors.Is(err, kvstore.ErrTimeout) {
			t.Fatalf("flush: %v", err)
		}
		goOn()
		until(t, "the store has the block", func() bool { return r.stored(1) == 2 })
	})
	t.Run("panic", func(t *testing.T) {
		r := newRig(t, Config{MaxAge: age})
		r.fill(2)
		var once sync.Once
		r.under.set(func(context.Context, []*kvstore.Op) error {
			once.Do(func() {
				time.Sleep(6 * age)
				panic("planted")
			})
			return nil
		})
		r.deferred(1, 2)
		ch := r.channel()
		_ = kvstore.Contain(func() error { return ch.Flush(ctx, layerID) })
		must(t, ch.Close())
		until(t, "the store has the block", func() bool { return r.stored(1) == 2 })
	})
}

// Dirty bytes are bounded: a write beyond goes through, and is not lost for that.
func TestBound(t *testing.T) {
	r := newRig(t, Config{MaxAge: never, MaxDirty: 4 * kvstore.BlockSize})
	r.fill(64)
	held, goOn := r.under.holding()
	defer goOn()
	for i := range 4 { // of one server, so that one drainer is held
		r.deferred(r.on(0, i), 2)
	}
	<-held // the drainer has taken some
	last := r.on(1, 0)
	through := r.overwrite(last, 2)
	done := in(func() { r.ch.Do(ctx, []*kvstore.Op{through}) })
	<-held // until it wants to store, too
	goOn()
	within(t, done, "the write that has no room")
	if through.Err != nil || through.Deferred {
		t.Errorf("beyond the bound: %v, deferred %v", through.Err, through.Deferred)
	}
	r.storeHas(last, 2)
	r.flush()
	for i := range 4 {
		r.storeHas(r.on(0, i), 2)
	}
}

// A discard takes what is dirty with it, also what is on its way.
func TestDiscardDropsDirty(t *testing.T) {
	discard := func(n uint64) *kvstore.Op { return &kvstore.Op{Code: kvstore.Discard, Key: key(n), Count: 1} }
	t.Run("queued", func(t *testing.T) {
		r := newRig(t, Config{MaxAge: never})
		r.fill(4)
		r.deferred(1, 2)
		r.do(discard(1))
		if op := readOp(1); true {
			if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrAbsent) {
				t.Errorf("after the discard: %v", op.Err)
			}
		}
		r.flush()
		r.storeHas(1, 0)
	})
	for _, goesOn := range []bool{false, true} {
		t.Run(fmt.Sprintf("flying, goes on: %t", goesOn), func(t *testing.T) {
			r := newRig(t, Config{MaxAge: never})
			r.fill(4)
			r.deferred(1, 2)
			held, goOn := r.under.holding()
			defer goOn()
			other := r.channel()
			flush := in(func() { _ = other.Flush(ctx, layerID) })
			<-held
			r.deferred(1, 3)
			op := discard(1)
			if r.ch.Try(ctx, []*kvstore.Op{op}) {
				t.Error("a discard did not wait for the block that is on its way")
			}
			goOn()
			if goesOn { // Try instead of Finish
				if !r.ch.Try(ctx, nil) {
					t.Error("a discard waits for a server that answers")
				}
			} else {
				r.ch.Finish(ctx)
			}
			must(t, op.Err)
			within(t, flush, "the flush")
			r.flush()
			r.storeHas(1, 0)
		})
	}
}

// A flush does not fail for a block that was discarded on its way; but that its server
// was emptied says something of the others, too.
func TestDiscardedDoesNotFailFlush(t *testing.T) {
	for failure, want := range map[error]error{kvstore.ErrFull: nil, kvstore.ErrServerLost: kvstore.ErrServerLost} {
		t.Run(failure.Error(), func(t *testing.T) {
			r := newRig(t, Config{MaxAge: never})
			r.fill(4)
			r.deferred(1, 2)
			held, gate := make(chan struct{}, 1), make(chan struct{})
			r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
				if len(ops) == 0 || ops[0].Code != kvstore.Write {
					return nil
				}
				held <- struct{}{}
				<-gate
				return failure
			})
			other := r.channel()
			var err error
			flush := in(func() { err = other.Flush(ctx, layerID) })
			<-held
			op := &kvstore.Op{Code: kvstore.Discard, Key: key(1), Count: 1}
			if r.ch.Try(ctx, []*kvstore.Op{op}) {
				t.Error("a discard did not wait for the block that is on its way")
			}
			close(gate)
			r.ch.Finish(ctx)
			must(t, op.Err)
			within(t, flush, "the flush")
			if !errors.Is(err, want) {
				t.Errorf("flush: %v, want %v", err, want)
			}
			r.storeHas(1, 0)
		})
	}
}

// Versions of a block are stored in the order in which they were written.
func TestBlocksStayInOrder(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(2)
	r.deferred(1, 2)
	held, goOn := r.under.holding()
	defer goOn()
	other := r.channel()
	flush := in(func() { must(t, other.Flush(ctx, layerID)) })
	<-held
	// One that goes through must not overtake the one on its way, nor come before it.
	op := &kvstore.Op{Code: kvstore.Write, Expect: kvstore.Present, Key: key(1), Data: block(3)}
	if r.ch.Try(ctx, []*kvstore.Op{op}) {
		t.Fatal("a write passed the one of the same block that is on its way")
	}
	if !errors.Is(op.Err, kvstore.ErrPending) {
		t.Errorf("what Try left: %v", op.Err)
	}
	goOn()
	r.ch.Finish(ctx)
	must(t, op.Err)
	within(t, flush, "the flush")
	r.flush()
	r.storeHas(1, 3)
	r.holds(1, 3)
}

// Errors are the flush's, what failed stays dirty, is read and is stored by the next
// one; until that nothing more is deferred.
func TestFlushReportsErrors(t *testing.T) {
	for name, want := range map[string]error{"full": kvstore.ErrFull, "lost server": kvstore.ErrServerLost, "timeout": kvstore.ErrTimeout} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{MaxAge: never})
			r.fill(4)
			r.deferred(1, 2)
			r.deferred(2, 2)
			r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
				if len(ops) > 0 && ops[0].Code == kvstore.Write {
					return want
				}
				return nil
			})
			for range 2 {
				if err := r.ch.Flush(ctx, layerID); !errors.Is(err, want) {
					t.Fatalf("flush: %v, want %v", err, want)
				}
			}
			r.holds(1, 2)
			op := r.overwrite(1, 3)
			if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, want) || op.Deferred {
				t.Errorf("a write after the failure: %v, deferred %v", op.Err, op.Deferred)
			}
			r.under.set(nil)
			if r.write(3, 2) {
				t.Error("deferred before a flush succeeded")
			}
			r.flush()
			r.storeHas(1, 2)
			r.storeHas(2, 2)
			r.deferred(3, 3)
		})
	}
}

// A server that fails does not keep what is dirty from the others.
func TestOtherServersAreStored(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(8)
	bad, good := r.on(0, 0), r.on(1, 0)
	r.deferred(bad, 2)
	r.deferred(good, 2)
	r.under.set(func(_ context.Context, ops []*kvstore.Op) error {
		if len(ops) == 1 && ops[0].Key.Number == good {
			return nil
		}
		for _, op := range ops {
			if op.Code == kvstore.Write {
				return kvstore.ErrServerLost
			}
		}
		return nil
	})
	if err := r.ch.Flush(ctx, layerID); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("flush: %v", err)
	}
	r.mem.Forget(0) // now by itself
	r.under.set(nil)
	if err := r.channel().Flush(ctx, layerID); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("flush: %v", err)
	}
	r.storeHas(good, 2)
}

// Of the errors of several servers a closed fence comes first: who waits for it has the
// rest stored, and is told of a server that was emptied then.
func TestErrorOfServers(t *testing.T) {
	for _, c := range []struct {
		failing []error
		want    error
	}{
		{[]error{nil, nil}, nil},
		{[]error{nil, kvstore.ErrTimeout, kvstore.ErrServerLost}, kvstore.ErrServerLost},
		{[]error{kvstore.ErrServerLost, kvstore.ErrTimeout}, kvstore.ErrServerLost},
		{[]error{kvstore.ErrServerLost, kvstore.ErrFenced}, kvstore.ErrFenced},
		{[]error{kvstore.ErrFenced, kvstore.ErrServerLost}, kvstore.ErrFenced},
	} {
		if err := (&flight{failing: c.failing}).err(); err != c.want {
			t.Errorf("of %v: %v, want %v", c.failing, err, c.want)
		}
	}
}

// Nothing is deferred past the fence, and what is dirty waits for it.
func TestFence(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(4)
	r.deferred(1, 2)
	r.fence.Open(kvstore.Boottime() - 1)
	op := r.overwrite(2, 2)
	if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrFenced) || op.Deferred {
		t.Errorf("a write past the fence: %v, deferred %v", op.Err, op.Deferred)
	}
	if err := r.ch.Flush(ctx, layerID); !errors.Is(err, kvstore.ErrFenced) {
		t.Errorf("a flush past the fence: %v", err)
	}
	r.storeHas(1, 1)
	r.fence.OpenForEver()
	r.flush()
	r.storeHas(1, 2)
	r.deferred(1, 3)
	r.fence.Close()
	r.store.Closed(layerID)
	if st := r.store.Stats(); st.Dirty != 0 || st.Dropped != 1 {
		t.Errorf("after the close: %+v", st)
	}
	r.storeHas(1, 2)
}

// What is on its way to a server that is silent ends with the volume.
func TestClosedEndsWhatIsFlying(t *testing.T) {
	r := newRig(t, Config{})
	r.fill(2)
	held, goOn := r.under.holding()
	defer goOn()
	r.deferred(1, 2)
	<-held // by the drainer
	within(t, in(func() { r.store.Closed(layerID) }), "the close")
	goOn()
	r.storeHas(1, 1)
	r.store.Opened(layerID)
	r.holds(1, 1)
}

// A dirty block that the store lost is stored anew, as without write-back.
func TestLostBlockIsStoredAnew(t *testing.T) {
	r := newRig(t, Config{MaxAge: never})
	r.fill(2)
	r.deferred(1, 2)
	r.mem.Drop(key(1))
	r.holds(1, 2)
	r.flush()
	r.storeHas(1, 2)
	if st := r.store.Stats(); st.Healed != 1 {
		t.Errorf("%+v", st)
	}
}
