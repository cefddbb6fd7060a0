package fault

import (
	"context"

	"github.com/kvbfs/kvbfs/kvstore"
)

// channel is one worker's way in. Used by one goroutine at a time.
type channel struct {
	store *Store
	inner kvstore.Channel
	on    []*kvstore.Op // what is handed on of the batch in work
	spoil []spoiled     // what gets another result afterwards
}

type spoiled struct {
	op  *kvstore.Op
	err error
}

// Do executes the batch, less what faults take out of it.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	done := c.store.counters.begin(ops)
	defer done.end()
	if err := c.store.pass(ctx, true); err != nil {
		for _, op := range ops {
			op.Err = err
		}
		return
	}
	if len(ops) > kvstore.MaxBatch {
		c.inner.Do(ctx, ops) // it says what is wrong
		return
	}
	c.on, c.spoil = c.on[:0], c.spoil[:0]
	for _, op := range ops {
		switch a, err := c.store.decide(op); a {
		case Fail:
			op.Err = err
		case Drop:
			op.Err = nil
		case Late:
			c.store.later(op)
			op.Err = nil
		case Panic:
			panic("fault: planted")
		case FailAfter:
			c.spoil = append(c.spoil, spoiled{op, err})
			c.on = append(c.on, op)
		default:
			c.on = append(c.on, op)
		}
	}
	if len(c.on) > 0 || len(ops) == 0 {
		c.inner.Do(ctx, c.on)
	}
	for _, s := range c.spoil {
		s.op.Err = s.err
	}
	clear(c.on) // operations belong to the caller
	clear(c.spoil)
}

// Try implements kvstore.Channel: faults are injected into Do, so it
// stays, as with a store that is never silent.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

// Finish implements kvstore.Channel; Try leaves nothing.
func (c *channel) Finish(context.Context) {}

// Flush hands on, unless a rule hits.
func (c *channel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	c.store.counters.flushes.Add(1)
	if err := c.store.pass(ctx, true); err != nil {
		return err
	}
	return c.store.around(Flushes, func() error { return c.inner.Flush(ctx, layer) })
}

// Close closes the channel below.
func (c *channel) Close() error { return c.inner.Close() }

// around does a call that is no block operation, with faults.
func (s *Store) around(t Target, f func() error) error {
	a, injected := s.call(t)
	switch a {
	case Fail:
		return injected
	case Panic:
		panic("fault: planted")
	case Drop:
		return nil
	}
	err := f()
	if a == FailAfter {
		return injected
	}
	return err
}

// control decorates the records. Dropping is for Add, Swap and Delete only: a
// Get cannot be acknowledged without a value.
type control struct {
	store *Store
	inner kvstore.Control
}

func (c control) do(ctx context.Context, f func() error) error {
	c.store.counters.control.Add(1)
	if err := c.store.pass(ctx, false); err != nil {
		return err
	}
	return c.store.around(Controls, f)
}

// Get reads a record; a dropped Get finds none.
func (c control) Get(ctx context.Context, server int, name string) (rec kvstore.Record, err error) {
	reached := false
	err = c.do(ctx, func() error {
		reached = true
		rec, err = c.inner.Get(ctx, server, name)
		return err
	})
	switch {
	case err != nil:
		return kvstore.Record{}, err
	case !reached:
		return kvstore.Record{}, kvstore.ErrAbsent
	}
	return rec, nil
}

// Add creates a record.
func (c control) Add(ctx context.Context, server int, name string, value []byte) error {
	return c.do(ctx, func() error { return c.inner.Add(ctx, server, name, value) })
}

// Swap replaces a record.
func (c control) Swap(ctx context.Context, server int, name string, old kvstore.Record, value []byte) error {
	return c.do(ctx, func() error { return c.inner.Swap(ctx, server, name, old, value) })
}

// Delete removes a record.
func (c control) Delete(ctx context.Context, server int, name string) error {
	return c.do(ctx, func() error { return c.inner.Delete(ctx, server, name) })
}
