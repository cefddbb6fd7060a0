package cache_test

import (
	"errors"
	"testing"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
)

// giveUp writes a block by a write that the store gives up and executes later.
func (r *rig) giveUp(n, version uint64) {
	r.t.Helper()
	r.under.givesUp.Store(true)
	defer r.under.givesUp.Store(false)
	op := writeOp(n, version)
	if r.ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrTimeout) {
		r.t.Fatalf("a write that is given up: %v", op.Err)
	}
}

// A write that was given up is executed late. Until then its block is not cached, nor
// does another one go for it; afterwards it is, as it is then.
func TestLateWrite(t *testing.T) {
	for name, n := range map[string]uint64{"was cached": 5, "was not": 20} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, cache.Config{Size: 1}) // one set, of 16 blocks
			r.fill(32)
			for n := range uint64(16) {
				r.holds(n, n)
			}
			r.giveUp(n, 100)
			for range 3 {
				r.holds(n, n)
				if r.cached(n) {
					t.Fatal("it is cached, though a write that was given up may still change it")
				}
			}
			if st := r.cache.Stats(); st.Evicted != 0 {
				t.Errorf("%d blocks went for one that is not cached", st.Evicted)
			}
			r.under.doLate(t)
			for range 3 {
				r.holds(n, 100)
			}
			if !r.cached(n) {
				t.Error("it is not cached though nothing comes late any more")
			}
		})
	}
}

// A write that was given up is executed while a stream comes near: its block is not
// read ahead before.
func TestLateWriteAndReadAhead(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 16 << 20, ReadAhead: 4 << 20})
	const span, late = 2048, 600
	r.fill(span)
	r.giveUp(late, span+1)
	for at := uint64(0); at < late-88; at += 32 {
		r.check(r.run(r.ch, at, 32, 1))
	}
	r.settled()
	r.under.doLate(t)
	r.holds(late, span+1)
	for at := uint64(1024); at < span; at += 32 {
		r.check(r.run(r.ch, at, 32, 2))
	}
	if st := r.settled(); st.ReadAhead.Read == 0 {
		t.Error("nothing is read ahead any more")
	}
}

// A panic below cuts a write off that may be executed late, which is known once its
// channel is closed: a read that comes then caches nothing.
func TestLateWriteOfPanic(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 4 << 20})
	r.fill(4)
	broken, err := r.cache.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.under.set(func([]*kvstore.Op) { panic("planted") }, nil)
	_ = kvstore.Contain(func() error { broken.Do(ctx, []*kvstore.Op{writeOp(1, 9)}); return nil })
	r.under.set(nil, nil)
	look := func() { r.holds(1, 1) } // when the store does not know yet that it may come late
	r.under.closing.Store(&look)
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	r.under.closing.Store(nil)
	if got := r.cache.Stats().Fills; got != 0 {
		t.Errorf("%d blocks were cached while a write of theirs was cut off", got)
	}
}
