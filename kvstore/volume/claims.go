package volume

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// claims orders what happens to one block: writes, read-modify-writes, deletions
// of keys and the verification of a loss hold the claim of their block; plain
// reads and discards do not.
//
// A claim is one word of a table, found by the slot of placement and the block's
// place in it, so that two blocks may share one, but only if they are on the
// same server: a server that is silent holds up no claim of another one's block. It is taken by compare-and-swap and given back by one
// swap; only who finds it taken and has nothing else to do sleeps, and nobody
// sleeps on a claim while holding another one, so there can be no cycle.
type claims struct {
	// 0: free; else the owner's number shifted left, bit 0: somebody sleeps.
	words   [claimWords]atomic.Uint32
	stripes [claimStripes]stripe
}

const (
	// claimWords: 128 Ki words are 512 KiB, and with 256 blocks in flight a block
	// meets a stranger's claim once in 512 times.
	claimWords   = pool.Slots * pool.SlotBlocks
	claimStripes = 64
	sleeping     = 1
)

type stripe struct {
	mu   sync.Mutex
	wake chan struct{} // guarded by mu; closed to wake all; nil: nobody sleeps
	_    [48]byte      // a cache line each
}

// claimOf returns the index of a block's claim.
func claimOf(layer kvstore.LayerID, lba uint64) int32 {
	slot := pool.SlotOf(kvstore.Key{Layer: layer, Number: lba})
	return int32(slot*pool.SlotBlocks + int(lba%pool.SlotBlocks))
}

// try takes claim i for owner, if it is free.
func (c *claims) try(i int32, owner uint32) bool {
	return c.words[i].CompareAndSwap(0, owner<<1)
}

// heldBy says whether owner has claim i.
func (c *claims) heldBy(i int32, owner uint32) bool { return c.words[i].Load()>>1 == owner }

// release gives claim i back.
func (c *claims) release(i int32) {
	if c.words[i].Swap(0)&sleeping == 0 {
		return
	}
	s := &c.stripes[i%claimStripes]
	s.mu.Lock()
	if s.wake != nil {
		close(s.wake)
		s.wake = nil
	}
	s.mu.Unlock()
}

// wait sleeps until claim i may be free, or ctx ends. The caller holds no claim
// and tries again afterwards.
func (c *claims) wait(ctx context.Context, i int32) error {
	s := &c.stripes[i%claimStripes]
	s.mu.Lock()
	for {
		w := c.words[i].Load()
		if w == 0 {
			s.mu.Unlock()
			return nil
		}
		if w&sleeping != 0 || c.words[i].CompareAndSwap(w, w|sleeping) {
			break
		}
	}
	if s.wake == nil {
		s.wake = make(chan struct{})
	}
	wake := s.wake
	s.mu.Unlock()
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctxErr(ctx)
	}
}

// gate is a mutex that can be waited for with a context. It may be held across
// I/O: it guards what happens rarely, and who holds it never waits for a claim.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	default:
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctxErr(ctx)
	}
}

func (g gate) unlock() { <-g }

// ctxErr says in the words of the store why a context ended.
func ctxErr(ctx context.Context) error {
	if context.Cause(ctx) == context.DeadlineExceeded || ctx.Err() == context.DeadlineExceeded {
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}
