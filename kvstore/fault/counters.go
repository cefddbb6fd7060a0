package fault

import (
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Counters is what reached the decorator since Wrap or Reset.
type Counters struct {
	Batches, Reads, Writes, Discards uint64 // batches, and operations by code
	Flushes, Control, Faults         uint64 // calls, and operations that were hit
	LargestBatch                     uint64 // operations
	MaxConcurrent                    uint64 // batches in work at once, at most
	MaxConcurrentOps                 uint64 // operations in work at once, at most
}

// Operations is the number of block operations.
func (c Counters) Operations() uint64 { return c.Reads + c.Writes + c.Discards }

type counters struct {
	batches, reads, writes, discards, flushes, control, faults atomic.Uint64
	largest, maxBatches, maxOps                                atomic.Uint64
	nowBatches, nowOps                                         atomic.Int64
}

// Counters returns what was counted so far.
func (s *Store) Counters() Counters {
	c := &s.counters
	return Counters{
		Batches: c.batches.Load(), Reads: c.reads.Load(), Writes: c.writes.Load(), Discards: c.discards.Load(),
		Flushes: c.flushes.Load(), Control: c.control.Load(), Faults: c.faults.Load(),
		LargestBatch: c.largest.Load(), MaxConcurrent: c.maxBatches.Load(), MaxConcurrentOps: c.maxOps.Load(),
	}
}

// Reset sets all counters to zero. Batches in work still count as concurrent.
func (s *Store) Reset() {
	c := &s.counters
	for _, n := range []*atomic.Uint64{&c.batches, &c.reads, &c.writes, &c.discards, &c.flushes, &c.control,
		&c.faults, &c.largest, &c.maxBatches, &c.maxOps} {
		n.Store(0)
	}
}

// running is a batch in work.
type running struct {
	c *counters
	n int64
}

// begin counts a batch; the caller calls end when it is done.
func (c *counters) begin(ops []*kvstore.Op) running {
	c.batches.Add(1)
	for _, op := range ops {
		switch op.Code {
		case kvstore.Read:
			c.reads.Add(1)
		case kvstore.Write:
			c.writes.Add(1)
		case kvstore.Discard:
			c.discards.Add(1)
		}
	}
	n := int64(len(ops))
	raise(&c.largest, n)
	raise(&c.maxBatches, c.nowBatches.Add(1))
	raise(&c.maxOps, c.nowOps.Add(n))
	return running{c, n}
}

func (r running) end() {
	r.c.nowBatches.Add(-1)
	r.c.nowOps.Add(-r.n)
}

// raise makes m at least n.
func raise(m *atomic.Uint64, n int64) {
	for old := m.Load(); uint64(n) > old; old = m.Load() {
		if m.CompareAndSwap(old, uint64(n)) {
			return
		}
	}
}
