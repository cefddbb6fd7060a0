package writeback

import (
	"context"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// channel is one worker's way in. Used by one goroutine at a time.
type channel struct {
	store *Store
	inner kvstore.Channel

	on    []*kvstore.Op // what is handed on
	waits []*kvstore.Op // what is handed on once nothing of its block is dirty
	left  bool          // Try of the channel below left something
	under bool          // Try left something

	layerID kvstore.LayerID
	layer   *layer // of layerID; nil: not open
	known   bool   // layer is valid, for this batch
	passed  *kvstore.Fence

	flight flight
	closed bool
}

func newChannel(s *Store, inner kvstore.Channel) *channel {
	return &channel{
		store: s, inner: inner,
		on:    make([]*kvstore.Op, 0, kvstore.MaxBatch),
		waits: make([]*kvstore.Op, 0, kvstore.MaxBatch),
	}
}

// refused says that a batch cannot begin: the channel below tells why.
func (c *channel) refused(ctx context.Context, ops []*kvstore.Op) bool {
	return c.closed || len(ops) > kvstore.MaxBatch || ctx.Err() != nil
}

// Do executes the batch: what is dirty is answered, what may be deferred is, the rest
// is handed on.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.refused(ctx, ops) {
		c.inner.Do(ctx, ops)
		return
	}
	c.begin(ops)
	if len(c.on) > 0 || len(ops) == 0 {
		c.inner.Do(ctx, c.on)
	}
	c.doWaits(ctx)
}

// Try is Do for a caller that does not stay for silent servers. What waits for an
// entry is left, as what it waits for may be such a server.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	if len(ops) == 0 && c.under {
		return c.tryLeft(ctx)
	}
	if c.refused(ctx, ops) {
		return c.inner.Try(ctx, ops)
	}
	c.begin(ops)
	c.left = false
	if len(c.on) > 0 || len(ops) == 0 {
		c.left = !c.inner.Try(ctx, c.on)
	}
	for _, op := range c.waits {
		op.Err = kvstore.ErrPending
	}
	c.under = c.left || len(c.waits) > 0
	return !c.under
}

// tryLeft goes on with what Try left, until more of it has its result. What waits for
// entries comes last.
func (c *channel) tryLeft(ctx context.Context) bool {
	if c.left {
		c.left = !c.inner.Try(ctx, nil)
		c.under = c.left || len(c.waits) > 0
		return !c.under
	}
	c.under = false
	c.doWaits(ctx)
	return true
}

// Finish goes on with what Try left.
func (c *channel) Finish(ctx context.Context) {
	c.under = false
	if c.left {
		c.left = false
		c.inner.Finish(ctx)
	}
	c.doWaits(ctx)
}

// begin sorts the operations of a batch: answered, to be handed on, or to wait.
func (c *channel) begin(ops []*kvstore.Op) {
	c.on, c.waits, c.known, c.passed = c.on[:0], c.waits[:0], false, nil
	for _, op := range ops {
		if op.Key.Kind != kvstore.KindBlock || op.Key.Number > kvstore.MaxNumber || !c.open(op.Key.Layer) {
			c.on = append(c.on, op)
			continue
		}
		switch c.sort(op) {
		case answered:
		case waits:
			c.waits = append(c.waits, op)
		default:
			c.on = append(c.on, op)
		}
	}
}

type what uint8

const (
	on what = iota
	answered
	waits
)

// sort answers an operation on a block, or says what is to be done with it.
func (c *channel) sort(op *kvstore.Op) what {
	l := c.layer
	switch op.Code {
	case kvstore.Read:
		if len(op.Data) != kvstore.BlockSize {
			return on
		}
		if !op.Versioned {
			if l.read(op) {
				op.Err = nil
				return answered
			}
			return on
		}
	case kvstore.Write:
		if len(op.Data) != kvstore.BlockSize {
			return on
		}
		if op.Deferrable && op.Expect == kvstore.Present && l.seen.Load() && c.passes(op.Fence) && l.defers(op) {
			op.Err, op.Deferred = nil, true
			return answered
		}
	case kvstore.Discard:
		if op.Count <= 1 || c.store.extents {
			if l.discard(op.Key.Number, max(1, uint64(op.Count))) {
				return waits
			}
		}
		return on
	}
	if l.dirty(op.Key.Number) {
		return waits
	}
	return on
}

// open finds the layer of an operation, once for each run of one layer.
func (c *channel) open(id kvstore.LayerID) bool {
	if !c.known || id != c.layerID {
		c.layerID, c.layer, c.known = id, c.store.get(id), true
	}
	return c.layer != nil
}

// passes says whether a fence is open, which costs a system call, once for a batch.
func (c *channel) passes(f *kvstore.Fence) bool {
	if f == nil || f == c.passed {
		return true
	}
	if !f.Passes() {
		return false
	}
	c.passed = f
	return true
}

// doWaits hands on what waits, once nothing of its block is dirty. An entry that
// cannot be stored gives its error to what waits for it: both are for one server.
func (c *channel) doWaits(ctx context.Context) {
	if len(c.waits) == 0 {
		return
	}
	c.on = c.on[:0]
	for _, op := range c.waits {
		if op.Err = c.clean(ctx, op); op.Err == nil {
			c.on = append(c.on, op)
		}
	}
	clear(c.waits) // operations belong to the caller
	c.waits = c.waits[:0]
	if len(c.on) > 0 {
		c.inner.Do(ctx, c.on)
	}
}

// clean returns when no block of an operation is dirty.
func (c *channel) clean(ctx context.Context, op *kvstore.Op) error {
	l := c.store.get(op.Key.Layer)
	if l == nil {
		return nil // closed meanwhile
	}
	c.flight.reset(len(l.queued))
	for n := op.Key.Number; n < op.Key.Number+max(1, uint64(op.Count)); {
		l.mu.Lock()
		e := l.blocks[n]
		var wait chan struct{}
		switch {
		case e == nil:
			n++
		case e.flying || e.older != nil:
			wait = l.waiting()
		default:
			l.fly(e)
			c.flight.entries = append(c.flight.entries, e)
		}
		l.mu.Unlock()
		if wait != nil {
			select {
			case <-wait:
			case <-ctx.Done():
				return ended(ctx)
			}
		}
		if len(c.flight.entries) > 0 {
			c.flight.run(ctx, c.inner)
			if err := c.flight.err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush stores what is dirty of the layer, then flushes the store. From the first
// success on writes may be deferred.
func (c *channel) Flush(ctx context.Context, id kvstore.LayerID) error {
	l := c.store.get(id)
	if l == nil || c.closed {
		return c.inner.Flush(ctx, id)
	}
	if err := c.flight.drain(ctx, c.inner, l); err != nil {
		l.seen.Store(false)
		return fmt.Errorf("storing what was acknowledged before: %w", err)
	}
	err := c.inner.Flush(ctx, id)
	l.seen.Store(err == nil)
	return err
}

// Close closes the channel below. What a panic in it left flying is dirty again.
func (c *channel) Close() error {
	c.closed = true
	err := c.inner.Close()
	c.flight.abandon()
	return err
}
