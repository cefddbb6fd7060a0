package tikv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

const (
	// grace is for how long Try stays: some round trips with a synced log.
	grace = 100 * time.Millisecond
	// singly is up to how many blocks a discard names each; TiKV deletes a longer
	// range by one request to each region.
	singly = 64
)

// channel is one worker's batches, one after the other. Connections are the client's.
type channel struct {
	store  *Store
	run    *run
	proven bool // the sentinel was seen
	closed bool
}

// run is a batch in work. Its goroutine alone uses it until done is closed.
type run struct {
	ops  []*kvstore.Op
	errs []error // results so far; errOpen: none yet
	done chan struct{}
	stop context.CancelCauseFunc
	left bool // by Try
}

// errOpen stands for the result of an operation that has none.
var errOpen = errors.New("open")

// Do implements kvstore.Channel.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.begin(ctx, ops) {
		c.Finish(ctx)
	}
}

// Try implements kvstore.Channel.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	again := len(ops) == 0 && c.run != nil
	if !again && !c.begin(ctx, ops) {
		return true
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.run.done:
		c.collect()
		return true
	case <-ctx.Done():
		c.Finish(ctx)
		return true
	case <-timer.C:
	}
	if again {
		return false
	}
	for _, op := range ops {
		op.Err = kvstore.ErrPending
	}
	c.run.left = true
	c.store.silent.Add(1)
	return false
}

// Finish implements kvstore.Channel.
func (c *channel) Finish(ctx context.Context) {
	select {
	case <-c.run.done:
	case <-ctx.Done():
		c.run.stop(ended(ctx))
		<-c.run.done
	}
	c.collect()
}

// begin starts the batch; false if all results are there.
func (c *channel) begin(ctx context.Context, ops []*kvstore.Op) bool {
	err := c.usable(ctx)
	if err == nil && len(ops) > kvstore.MaxBatch {
		err = fmt.Errorf("%w: a batch of %d operations, at most %d", kvstore.ErrInvalid, len(ops), kvstore.MaxBatch)
	}
	r := &run{ops: ops, errs: make([]error, len(ops)), done: make(chan struct{})}
	open := false
	for i, op := range ops {
		if r.errs[i] = err; err == nil {
			r.errs[i] = check(op)
		}
		open = open || r.errs[i] == errOpen
	}
	var life context.Context
	life, r.stop = context.WithCancelCause(context.Background())
	c.run = r
	if !open {
		c.collect()
		return false
	}
	go c.work(life, r)
	return true
}

// collect hands the results out.
func (c *channel) collect() {
	r := c.run
	c.run = nil
	r.stop(nil)
	if r.left {
		c.store.silent.Add(-1)
	}
	for i, op := range r.ops {
		if op.Err = r.errs[i]; op.Err == nil {
			continue
		}
		verb := "discard"
		switch op.Code {
		case kvstore.Read:
			verb = "read"
		case kvstore.Write:
			verb = "write"
		}
		op.Err = &kvstore.OpError{Op: verb, Server: c.store.name, Key: op.Key, Err: op.Err}
	}
}

// usable says why a call cannot be done now.
func (c *channel) usable(ctx context.Context) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	return c.store.usable(ctx)
}

// check says whether an operation keeps to the contract and to our Properties: errOpen.
func check(op *kvstore.Op) error {
	switch {
	case op.Key.Number > kvstore.MaxNumber:
		return kvstore.ErrInvalid
	case op.Code < kvstore.Read || op.Code > kvstore.Discard:
		return kvstore.ErrInvalid
	case op.Code != kvstore.Discard && len(op.Data) != kvstore.BlockSize:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Write && op.Expect > kvstore.Same:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Write && op.Expect != kvstore.Any, op.Versioned, op.Key.Kind != kvstore.KindBlock:
		return kvstore.ErrUnsupported
	}
	return errOpen
}

// work does a batch.
func (c *channel) work(ctx context.Context, r *run) {
	defer close(r.done)
	if err := c.prove(ctx); err != nil {
		r.settle(r.open(0), err)
		return
	}
	for batch := r.changes(kvstore.Write); len(batch) > 0; batch = r.changes(kvstore.Write) {
		r.settle(batch, c.write(ctx, r.pick(batch)))
	}
	for batch := r.changes(kvstore.Discard); len(batch) > 0; batch = r.changes(kvstore.Discard) {
		r.settle(batch, c.discard(ctx, r.pick(batch)))
	}
	c.read(ctx, r)
}

// open are the operations of a code (0: all) that have no result.
func (r *run) open(code kvstore.Code) (batch []int) {
	for i, op := range r.ops {
		if r.errs[i] == errOpen && (code == 0 || op.Code == code) {
			batch = append(batch, i)
		}
	}
	return batch
}

// changes are those of them that have one fence.
func (r *run) changes(code kvstore.Code) (batch []int) {
	for _, i := range r.open(code) {
		if len(batch) == 0 || r.ops[i].Fence == r.ops[batch[0]].Fence {
			batch = append(batch, i)
		}
	}
	return batch
}

func (r *run) pick(batch []int) (ops []*kvstore.Op) {
	for _, i := range batch {
		ops = append(ops, r.ops[i])
	}
	return ops
}

// settle gives all of a batch one result.
func (r *run) settle(batch []int, err error) {
	for _, i := range batch {
		r.errs[i] = err
	}
}

// write stores blocks that have one fence.
func (c *channel) write(ctx context.Context, ops []*kvstore.Op) error {
	var keys, values [][]byte
	for _, op := range ops {
		keys, values = append(keys, blockKey(op.Key)), append(values, blockValue(op))
	}
	return c.change(ctx, ops, func(ctx context.Context) error { return c.store.raw.BatchPut(ctx, keys, values) })
}

// discard removes extents that have one fence.
func (c *channel) discard(ctx context.Context, ops []*kvstore.Op) error {
	var keys [][]byte
	for _, op := range ops {
		if op.Count > singly {
			continue
		}
		last := min(op.Key.Number+uint64(max(op.Count, 1))-1, kvstore.MaxNumber)
		for k := op.Key; k.Number <= last; k.Number++ {
			keys = append(keys, blockKey(k))
		}
	}
	return c.change(ctx, ops, func(ctx context.Context) error {
		if len(keys) > 0 {
			if err := c.store.raw.BatchDelete(ctx, keys); err != nil {
				return err
			}
		}
		for _, op := range ops {
			if op.Count <= singly {
				continue
			}
			from, to := blocksFrom(op.Key.Layer, op.Key.Number, uint64(op.Count))
			if err := c.store.raw.DeleteRange(ctx, from, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// change does one kind of change until it is done, once nothing that was given up can
// follow it.
func (c *channel) change(ctx context.Context, ops []*kvstore.Op, f func(context.Context) error) error {
	s := c.store
	if err := c.repeat(ctx, nil, s.past.pass(s)); err != nil {
		return err
	}
	if err := s.haunts.wait(ctx, ops); err != nil {
		return err
	}
	s.counts.changed()
	defer s.counts.changed()
	return c.repeat(ctx, ops[0].Fence, f)
}

// read does all reads. What is absent is so only if the cluster is still the one that
// joined the pool.
func (c *channel) read(ctx context.Context, r *run) {
	batch := r.open(kvstore.Read)
	if len(batch) == 0 {
		return
	}
	var keys, values [][]byte
	for _, i := range batch {
		keys = append(keys, blockKey(r.ops[i].Key))
	}
	err := c.repeat(ctx, nil, func(ctx context.Context) (err error) {
		values, err = c.store.raw.BatchGet(ctx, keys)
		return err
	})
	if err != nil {
		r.settle(batch, err)
		return
	}
	var absent []int
	for n, i := range batch {
		r.errs[i] = readValue(r.ops[i], values[n])
		if r.errs[i] == kvstore.ErrAbsent {
			absent = append(absent, i)
		}
	}
	if len(absent) == 0 {
		return
	}
	if err := c.repeat(ctx, nil, c.store.checkSentinel); err != nil {
		r.settle(absent, err)
	}
}

// prove looks at the sentinel before the channel's first operation.
func (c *channel) prove(ctx context.Context) error {
	if c.proven {
		return nil
	}
	err := c.repeat(ctx, nil, c.store.checkSentinel)
	c.proven = err == nil
	return err
}

// checkSentinel says whether the cluster is the one that joined the pool.
func (s *Store) checkSentinel(ctx context.Context) error {
	name, value := (*s.place.Load()).Sentinel(0)
	if name == "" {
		return nil
	}
	rec, err := s.Control().Get(ctx, 0, name)
	switch {
	case errors.Is(err, kvstore.ErrAbsent), err == nil && !bytes.Equal(rec.Value, value):
		return kvstore.ErrServerLost
	}
	return err
}

// repeat calls f until it succeeds, the context ends, or the fence (which may be nil) is
// closed. The client repeats by itself too: it is told to end when the fence does.
func (c *channel) repeat(ctx context.Context, fence *kvstore.Fence, f func(context.Context) error) error {
	s := c.store
	began := time.Now()
	for try := 1; ; try++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !fence.Passes() {
			return kvstore.ErrFenced
		}
		within, cancel := bounded(ctx, fence)
		err := f(within)
		cancel()
		if err == nil || errors.Is(err, kvstore.ErrServerLost) {
			s.outage.Healthy()
			return err
		}
		if ctx.Err() != nil {
			continue
		}
		s.outage.Trouble(began, err)
		if err := pause(ctx, wire.Backoff(try, wire.Jitter)); err != nil {
			return err
		}
	}
}

// bounded ends when a fence does.
func bounded(ctx context.Context, fence *kvstore.Fence) (context.Context, context.CancelFunc) {
	if fence == nil || fence.Deadline() == math.MaxInt64 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(fence.Deadline()-kvstore.Boottime()))
}

// Flush implements kvstore.Channel: what was acknowledged is in the logs of most
// replicas. It proves that the cluster is still the one.
func (c *channel) Flush(ctx context.Context, _ kvstore.LayerID) error {
	err := c.usable(ctx)
	if err == nil {
		life, stop := context.WithCancelCause(context.Background())
		end := context.AfterFunc(ctx, func() { stop(ended(ctx)) })
		err = c.repeat(life, nil, c.store.checkSentinel)
		end()
		stop(nil)
	}
	if err != nil {
		return &kvstore.OpError{Op: "flush", Server: c.store.name, Err: err}
	}
	return nil
}

// Close implements kvstore.Channel.
func (c *channel) Close() error {
	c.closed = true
	return nil
}
