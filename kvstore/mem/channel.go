package mem

import (
	"context"

	"github.com/kvbfs/kvbfs/kvstore"
)

// channel is one worker's way in. Used by one goroutine at a time.
type channel struct {
	store  *Store
	place  kvstore.Placement
	proven []bool // per server: its sentinel was seen by this channel
	closed bool
}

// Do executes the batch in order.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	var all error
	switch {
	case c.closed || c.store.closed.Load():
		all = kvstore.ErrClosed
	case len(ops) > kvstore.MaxBatch:
		all = kvstore.ErrInvalid
	default:
		all = ended(ctx)
	}
	c.store.counters.batches.Add(1)
	var passed *kvstore.Fence // looked at once for a batch: it costs a system call
	for _, op := range ops {
		op.Err = all
		if all == nil {
			op.Err = c.one(op, &passed)
		}
	}
}

// Try implements kvstore.Channel: nothing here is ever silent.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

// Finish implements kvstore.Channel; Try leaves nothing.
func (c *channel) Finish(context.Context) {}

// one executes an operation.
func (c *channel) one(op *kvstore.Op, passed **kvstore.Fence) error {
	if err := check(op); err != nil {
		return err
	}
	n := c.place.Server(op.Key)
	if n < 0 || n >= len(c.store.servers) {
		return kvstore.ErrInvalid
	}
	if op.Code != kvstore.Read && op.Fence != *passed {
		if !op.Fence.Passes() {
			return kvstore.ErrFenced
		}
		*passed = op.Fence
	}
	if !c.proven[n] {
		if err := c.store.checkSentinel(c.place, n); err != nil {
			return err
		}
		c.proven[n] = true
	}
	sv, count := c.store.servers[n], &c.store.counters
	switch op.Code {
	case kvstore.Read:
		count.reads.Add(1)
		return sv.read(op)
	case kvstore.Write:
		count.writes.Add(1)
		return sv.write(op)
	default:
		count.discards.Add(1)
		sv.discard(op.Key)
		return nil
	}
}

// check says whether an operation keeps to the contract.
func check(op *kvstore.Op) error {
	if op.Key.Number > kvstore.MaxNumber {
		return kvstore.ErrInvalid
	}
	switch op.Code {
	case kvstore.Read, kvstore.Write:
		if len(op.Data) != kvstore.BlockSize || op.Expect > kvstore.Same {
			return kvstore.ErrInvalid
		}
	case kvstore.Discard:
		if op.Count > 1 {
			return kvstore.ErrInvalid
		}
	default:
		return kvstore.ErrInvalid
	}
	return nil
}

// Flush proves that no server was emptied. It looks at all of them, not only at
// those that were written: it costs nothing here and finds a loss sooner.
func (c *channel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	if err := c.store.usable(ctx); err != nil {
		return err
	}
	c.store.counters.flushes.Add(1)
	for n := range c.store.servers {
		if err := c.store.checkSentinel(c.place, n); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the channel.
func (c *channel) Close() error {
	c.closed = true
	return nil
}
