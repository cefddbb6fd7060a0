package volume

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// checkedStore fails the test if a batch breaks the contract, and lets a test
// look at batches before they are executed.
type checkedStore struct {
	kvstore.Store
	t      testing.TB
	before atomic.Pointer[func(ctx context.Context, ops []*kvstore.Op)]
	after  atomic.Pointer[func(ops []*kvstore.Op)]
	flush  atomic.Pointer[func(ctx context.Context) error] // before the store's; an error is the result
	off    atomic.Bool                                     // no checks: they allocate
	// leave says what Try leaves to Finish; nil: a third of every other batch.
	leave atomic.Pointer[func(op *kvstore.Op) bool]

	seed     uint64
	channels atomic.Uint64 // that were made
}

func checked(t testing.TB, st kvstore.Store) *checkedStore {
	return &checkedStore{Store: st, t: t, seed: storetest.Seed(func(string, ...any) {})}
}

func (s *checkedStore) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := s.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return &checkedChannel{Channel: ch, s: s, rnd: rand.New(rand.NewPCG(s.seed, s.channels.Add(1)))}, nil
}

type checkedChannel struct {
	kvstore.Channel
	s    *checkedStore
	rnd  *rand.Rand // says what Try leaves
	busy atomic.Bool
	left []*kvstore.Op // of Try
}

func (c *checkedChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.s.off.Load() {
		c.Channel.Do(ctx, ops)
		return
	}
	c.begin(ctx, ops)
	c.Channel.Do(ctx, ops)
	c.end(ops)
}

// Try leaves a part of every other batch to Finish, as if its server was silent.
func (c *checkedChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	if len(ops) == 0 && len(c.left) > 0 {
		return c.tryLeft(ctx)
	}
	leave := c.s.leave.Load()
	if c.s.off.Load() || leave == nil && c.rnd.IntN(2) == 0 {
		c.Do(ctx, ops)
		return true
	}
	if leave == nil {
		some := func(*kvstore.Op) bool { return c.rnd.IntN(3) == 0 }
		leave = &some
	}
	c.begin(ctx, ops)
	var now []*kvstore.Op
	for _, op := range ops {
		if !(*leave)(op) {
			now = append(now, op)
			continue
		}
		op.Err = kvstore.ErrPending
		c.left = append(c.left, op)
	}
	if len(now) > 0 {
		c.Channel.Do(ctx, now)
	}
	if len(c.left) > 0 {
		return false
	}
	c.end(ops)
	return true
}

// tryLeft does what need not be left any more.
func (c *checkedChannel) tryLeft(ctx context.Context) bool {
	leave := c.s.leave.Load()
	var now, left []*kvstore.Op
	for _, op := range c.left {
		if leave != nil && (*leave)(op) || leave == nil && c.rnd.IntN(2) == 0 {
			left = append(left, op)
		} else {
			now = append(now, op)
		}
	}
	c.left = left
	if len(now) > 0 {
		c.Channel.Do(ctx, now)
	}
	if len(left) > 0 {
		return false
	}
	c.end(now)
	return true
}

func (c *checkedChannel) Finish(ctx context.Context) {
	left := c.left
	c.left = nil
	for _, op := range left {
		if op.Err != kvstore.ErrPending {
			c.s.t.Errorf("%s was touched while it was pending: %v", op.Key, op.Err)
		}
	}
	c.Channel.Do(ctx, left)
	c.end(left)
}

func (c *checkedChannel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	if f := c.s.flush.Load(); f != nil {
		if err := (*f)(ctx); err != nil {
			return err
		}
	}
	return c.Channel.Flush(ctx, layer)
}

// begin checks a batch.
func (c *checkedChannel) begin(ctx context.Context, ops []*kvstore.Op) {
	if !c.busy.CompareAndSwap(false, true) {
		c.s.t.Error("two calls on one channel")
	}
	if len(ops) == 0 || len(ops) > kvstore.MaxBatch {
		c.s.t.Errorf("batch of %d", len(ops))
	}
	reads, changes := map[kvstore.Key]bool{}, map[kvstore.Key]bool{}
	for _, op := range ops {
		n := uint64(1)
		if op.Code == kvstore.Discard && !c.s.Properties().Presence {
			n = uint64(max(1, op.Count))
		}
		for i := range n {
			k := op.Key
			k.Number += i
			if changes[k] || (op.Code != kvstore.Read && reads[k]) {
				c.s.t.Errorf("two operations on %s in one batch", k)
			}
			if op.Code == kvstore.Read {
				reads[k] = true
			} else {
				changes[k] = true
			}
		}
		if op.Code != kvstore.Read && op.Fence == nil && op.Key.Kind == kvstore.KindBlock {
			c.s.t.Errorf("%s is changed without a fence", op.Key)
		}
	}
	if f := c.s.before.Load(); f != nil {
		(*f)(ctx, ops)
	}
}

func (c *checkedChannel) end(ops []*kvstore.Op) {
	if f := c.s.after.Load(); f != nil {
		(*f)(ops)
	}
	c.busy.Store(false)
}
