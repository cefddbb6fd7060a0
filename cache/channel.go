package cache

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// channel is one worker's way in. Used by one goroutine at a time.
type channel struct {
	store *Store
	inner kvstore.Channel

	on      []*kvstore.Op // what is handed on of the batch in work
	left    []*kvstore.Op // what Try left of it
	below   bool          // Try of the channel below left something
	holds   []hold        // what is to be settled when it comes back
	waits   []*kvstore.Op // reads of blocks that are being read ahead
	run     run           // of neighbours that one reader asked for
	timer   *time.Timer   // for waits; nil until first used
	layerID kvstore.LayerID
	layer   *layer // of layerID; nil: not cached
	known   bool   // layer is valid, for this batch

	window window
	random random
	count  counts
	closed bool
}

// hold is what is remembered of an operation while it is under way.
type hold struct {
	op    *kvstore.Op
	place place
	slot  uint32
	what  what
	layer *layer
}

type what uint8

const (
	filled   what = iota // a read: slot is reserved for the block
	rewrites             // a write: slot has the old block, out of service
	changes              // a write or discard of a block that is not cached
	sweeps               // a discard of more blocks than are looked at one by one
)

// sweepAt is how many blocks a discard may have to be looked at one by one.
const sweepAt = 64

func newChannel(s *Store, inner kvstore.Channel) *channel {
	return &channel{
		store: s, inner: inner,
		on:    make([]*kvstore.Op, 0, kvstore.MaxBatch),
		holds: make([]hold, 0, kvstore.MaxBatch),
		waits: make([]*kvstore.Op, 0, kvstore.MaxBatch),
		left:  make([]*kvstore.Op, 0, kvstore.MaxBatch),
	}
}

// refused says that a batch cannot begin: the channel below tells why.
func (c *channel) refused(ctx context.Context, ops []*kvstore.Op) bool {
	return c.closed || len(ops) > kvstore.MaxBatch || ctx.Err() != nil
}

// Do executes the batch: what is cached is answered, what is not is handed on.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.refused(ctx, ops) {
		c.inner.Do(ctx, ops)
		return
	}
	c.begin(ops)
	if len(c.on) > 0 || len(ops) == 0 {
		c.inner.Do(ctx, c.on)
		c.settle()
	}
	c.doWaits(ctx)
}

// doWaits serves what waits for what is being read ahead.
func (c *channel) doWaits(ctx context.Context) {
	if len(c.waits) == 0 {
		return
	}
	c.await()
	if len(c.on) > 0 {
		c.inner.Do(ctx, c.on)
		c.settle()
	}
}

// Try is Do for a caller that does not stay for silent servers.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	if len(ops) == 0 && c.below {
		return c.tryLeft(ctx)
	}
	if c.refused(ctx, ops) {
		return c.inner.Try(ctx, ops)
	}
	c.begin(ops)
	if len(c.on) > 0 || len(ops) == 0 {
		c.below = !c.inner.Try(ctx, c.on)
		c.settle()
		if c.below {
			for _, op := range c.waits {
				op.Err = kvstore.ErrPending
			}
			return false
		}
	}
	return c.tryWaits(ctx)
}

// tryWaits is doWaits for a caller that does not stay for silent servers.
func (c *channel) tryWaits(ctx context.Context) bool {
	if len(c.waits) == 0 {
		return true
	}
	c.await()
	if len(c.on) > 0 {
		c.below = !c.inner.Try(ctx, c.on)
		c.settle()
	}
	return !c.below
}

// tryLeft goes on with what Try left, until more of it has its result.
func (c *channel) tryLeft(ctx context.Context) bool {
	c.below = !c.inner.Try(ctx, nil)
	c.on, c.left = append(c.on[:0], c.left...), c.left[:0]
	c.settle()
	return !c.below && c.tryWaits(ctx)
}

// Finish goes on with what Try left.
func (c *channel) Finish(ctx context.Context) {
	c.inner.Finish(ctx)
	c.below = false
	c.on, c.left = append(c.on[:0], c.left...), c.left[:0]
	c.settle()
	c.doWaits(ctx)
}

// begin sorts the operations of a batch: answered, waiting for what is being read
// ahead, or to be handed on.
func (c *channel) begin(ops []*kvstore.Op) {
	c.on, c.holds, c.waits, c.known = c.on[:0], c.holds[:0], c.waits[:0], false
	if c.store.inner.Rewinds() != c.store.rewinds.Load() {
		c.store.rewound()
	}
	for _, op := range ops {
		if op.Key.Kind != kvstore.KindBlock || op.Key.Number > kvstore.MaxNumber || !c.cached(op.Key.Layer) {
			c.on = append(c.on, op)
			continue
		}
		switch op.Code {
		case kvstore.Read:
			if op.Reader == 0 || op.Versioned || len(op.Data) != kvstore.BlockSize {
				c.on = append(c.on, op)
				continue
			}
			if c.store.ahead != nil {
				c.follow(op)
			}
			c.read(op)
		case kvstore.Write, kvstore.Discard:
			c.change(op)
			c.on = append(c.on, op)
		default:
			c.on = append(c.on, op)
		}
	}
	if c.run.count > 0 {
		c.endRun()
	}
}

// cached finds the layer of an operation, once for each run of one layer.
func (c *channel) cached(id kvstore.LayerID) bool {
	if !c.known || id != c.layerID {
		c.layerID, c.layer, c.known = id, c.store.layers.get(id), true
	}
	return c.layer != nil
}

// read answers a read from memory, or has it wait for what is being read ahead, or
// hands it on.
func (c *channel) read(op *kvstore.Op) {
	t := c.store.table
	p := t.place(op.Key)
	if c.window.skips(p) {
		c.count.misses.Add(1)
		c.on = append(c.on, op)
		return
	}
	slot, word, found := t.find(p, op.Key)
	if found && t.ways[slot].epoch.Load() == c.layer.epoch.Load() {
		if c.copyOut(op, slot, word) {
			c.window.hit()
			return
		}
		if word&(stateMask|aheadBit) == filling|aheadBit {
			c.waits = append(c.waits, op)
			return
		}
	}
	c.miss(op, p)
}

// miss hands a read on, with a place for what comes back if the block is worth one.
func (c *channel) miss(op *kvstore.Op, p place) {
	t := c.store.table
	c.count.misses.Add(1)
	c.on = append(c.on, op)
	s := &t.sets[p.set]
	if !s.hasRoom() {
		c.window.miss()
		if !s.recall(p.tag) {
			return
		}
	}
	if slot, ok := c.store.reserve(p, op.Key, c.layer, 0); ok {
		c.holds = append(c.holds, hold{op: op, place: p, slot: slot, what: filled})
	}
}

// copyOut answers a read from a slot if it is valid still.
func (c *channel) copyOut(op *kvstore.Op, slot uint32, word uint64) bool {
	t := c.store.table
	if !t.pin(slot, word) {
		return false
	}
	copy(op.Data, t.data(slot))
	t.unpin(slot)
	op.Err = nil
	if word&aheadBit != 0 {
		c.count.aheadHits.Add(1)
	}
	c.count.hits.Add(1)
	return true
}

// change takes what a write or discard is about to change out of service, and
// sees to it that nothing of it is filled meanwhile.
func (c *channel) change(op *kvstore.Op) {
	t := c.store.table
	if op.Code == kvstore.Discard && op.Count > sweepAt {
		c.layer.changing.Add(1)
		c.layer.epoch.Add(1)
		c.holds = append(c.holds, hold{op: op, what: sweeps, layer: c.layer})
		return
	}
	p := t.place(op.Key)
	t.sets[p.set].writers.Add(1)
	if op.Code == kvstore.Write {
		h := hold{op: op, place: p, what: changes}
		if slot, ok := t.seize(p, op.Key); ok {
			h.slot, h.what = slot, rewrites
		}
		c.holds = append(c.holds, h)
		return
	}
	t.kill(p, op.Key)
	c.holds = append(c.holds, hold{op: op, place: p, what: changes})
	for i := uint32(1); i < op.Count; i++ {
		k := op.Key
		k.Number += uint64(i)
		p := t.place(k)
		t.sets[p.set].writers.Add(1)
		t.kill(p, k)
		c.holds = append(c.holds, hold{op: op, place: p, what: changes})
	}
}

// settle looks at what came back, and keeps what is still under way.
func (c *channel) settle() {
	kept := c.holds[:0]
	for i := range c.holds {
		if c.holds[i].op.Err == kvstore.ErrPending {
			kept = append(kept, c.holds[i])
		} else {
			c.end(&c.holds[i])
		}
	}
	clear(c.holds[len(kept):])
	c.holds = kept
	lost := false
	for _, op := range c.on {
		switch {
		case op.Err == nil:
		case op.Err == kvstore.ErrPending:
			c.left = append(c.left, op)
		case errors.Is(op.Err, kvstore.ErrServerLost):
			lost = true
		case op.Code == kvstore.Read && (errors.Is(op.Err, kvstore.ErrAbsent) || errors.Is(op.Err, kvstore.ErrCorrupt)):
			// What the store lost is not served from memory either.
			c.store.table.kill(c.store.table.place(op.Key), op.Key)
		}
	}
	if lost {
		c.store.layers.dropAll()
	}
	clear(c.on) // operations belong to the caller
	c.on = c.on[:0]
}

// end ends a hold with the result of its operation.
func (c *channel) end(h *hold) {
	t := c.store.table
	if h.op.Err != nil || h.what == rewrites && !t.alone(h.slot) {
		c.abandon(h)
		return
	}
	switch h.what {
	case filled:
		copy(t.data(h.slot), h.op.Data)
		if t.publish(h.slot) {
			c.count.fills.Add(1)
		}
	case rewrites:
		copy(t.data(h.slot), h.op.Data)
		t.publish(h.slot)
		t.sets[h.place.set].writers.Add(-1)
	default:
		c.abandon(h)
	}
}

// abandon ends a hold whose operation may not be looked at any more.
func (c *channel) abandon(h *hold) {
	t := c.store.table
	if h.what == filled || h.what == rewrites {
		t.release(h.slot)
	}
	switch h.what {
	case rewrites, changes:
		t.sets[h.place.set].writers.Add(-1)
	case sweeps:
		h.layer.changing.Add(-1)
	}
}

// Flush hands on. A server that was found emptied is believed at once.
func (c *channel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	err := c.inner.Flush(ctx, layer)
	if errors.Is(err, kvstore.ErrServerLost) {
		c.store.layers.dropAll()
	}
	return err
}

// Close closes the channel below. What a panic in it left under way is given up
// here: else its blocks could never be cached again. That is done last: the store knows
// that something may come late once the channel is closed.
func (c *channel) Close() error {
	defer c.giveUp()
	return c.inner.Close()
}

func (c *channel) giveUp() {
	if c.closed {
		return
	}
	c.closed = true
	for i := range c.holds {
		c.abandon(&c.holds[i])
	}
	c.holds = nil
	c.store.leave(c)
}

// window decides whether looking is worth while. Over a volume far larger than
// the cache random reads hit so rarely that they would be faster without it: then
// only one set in sampled is looked at, until hits there are worth looking for.
// Sets with room count for nothing: a cache that is being filled has no hits yet.
type window struct {
	looks, hits uint32
	bypass      bool
}

const (
	windowLooks = 4096
	sampled     = 16
	// worth: a look costs a hundredth of a request or less, so one hit in 64 pays.
	worth = 64
)

func (w *window) skips(p place) bool { return w.bypass && p.hash>>16%sampled != 0 }

func (w *window) hit() {
	w.looks++
	w.hits++
	w.judge()
}

func (w *window) miss() {
	w.looks++
	w.judge()
}

func (w *window) judge() {
	n := uint32(windowLooks)
	if w.bypass {
		n = windowLooks / sampled
	}
	if w.looks < n {
		return
	}
	switch {
	case w.hits*worth < w.looks:
		w.bypass = true
	case w.hits*worth >= 2*w.looks:
		w.bypass = false
	}
	w.looks, w.hits = 0, 0
}

// counts of one channel: only its user adds, so the words are not contended.
type counts struct {
	hits, misses, fills, aheadHits atomic.Uint64
}
