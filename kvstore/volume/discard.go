package volume

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/kvbfs/kvbfs/kvstore"
)

// discard drops the whole blocks of a Discard or Zero request. With a map it
// clears bits; else the store is asked, while no read-modify-write of the range
// is under way.
func (w *Worker) discard(ctx context.Context, j *job) error {
	v := j.vol
	first, count := j.cut.first, j.cut.count
	if count == 0 {
		return nil
	}
	if j.m != nil {
		j.m.clear(first, count)
		v.reaper.kick(v)
		return nil
	}
	// No slot is in work yet, so this worker has no read-modify-write to wait for.
	if err := v.excluded.discard(ctx, first, count); err != nil {
		return err
	}
	defer v.excluded.endDiscard(first, count)
	return v.discardExtent(ctx, w.ch, first, count)
}

// maxExtent is how many blocks one Discard names: 4 TiB, within its Count.
const maxExtent = 1 << 30

// discardExtent has a store that keeps presence drop count blocks.
func (v *Volume) discardExtent(ctx context.Context, ch kvstore.Channel, first, count uint64) error {
	step, width := uint64(maxExtent), 1
	if !v.set.prop.DiscardExtents {
		step, width = 1, kvstore.MaxBatch
	}
	ops := make([]kvstore.Op, 0, width)
	batch := make([]*kvstore.Op, 0, width)
	for count > 0 {
		ops, batch = ops[:0], batch[:0]
		for at := first; at < first+count && len(ops) < width; at += step {
			ops = append(ops, kvstore.Op{Code: kvstore.Discard, Key: kvstore.Key{Layer: v.layer, Number: at},
				Count: uint32(min(step, first+count-at)), Seed: v.seed, Fence: v.fence.Load()})
			batch = append(batch, &ops[len(ops)-1])
		}
		ch.Do(ctx, batch)
		fenced := false
		for i := range ops {
			if err := ops[i].Err; errors.Is(err, kvstore.ErrFenced) {
				fenced = true
			} else if err != nil {
				return err
			}
		}
		if fenced {
			if err := v.waitLease(ctx); err != nil {
				return err
			}
			continue // the same again: discarding twice is discarding
		}
		n := min(count, step*uint64(len(ops)))
		first, count = first+n, count-n
	}
	return nil
}

// exclusion keeps read-modify-writes and discards of the same blocks apart, where
// the store keeps presence and no bit tells afterwards that a discard came
// between. Both are rare, so a mutex does.
//
// A discard waits for the read-modify-writes of its range; those never wait for
// anything of a discard's once they are registered, but are put off while a
// discard is announced. So there is no cycle.
type exclusion struct {
	mu       sync.Mutex
	discards []extent      // guarded by mu; announced or under way
	modifies []uint64      // guarded by mu; blocks
	wake     chan struct{} // guarded by mu; closed when one ends
}

type extent struct{ first, count uint64 }

func (e extent) has(lba uint64) bool { return lba-e.first < e.count }

// modify registers a read-modify-write, or returns what to wait for.
func (x *exclusion) modify(lba uint64) (wait chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if slices.ContainsFunc(x.discards, func(e extent) bool { return e.has(lba) }) {
		return x.waiting()
	}
	x.modifies = append(x.modifies, lba)
	return nil
}

func (x *exclusion) endModify(lba uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.Index(x.modifies, lba)
	x.modifies = slices.Delete(x.modifies, i, i+1)
	x.wakeAll()
}

// discard announces a discard and waits for the read-modify-writes of its range.
func (x *exclusion) discard(ctx context.Context, first, count uint64) error {
	e := extent{first, count}
	x.mu.Lock()
	x.discards = append(x.discards, e)
	for slices.ContainsFunc(x.modifies, e.has) {
		wake := x.waiting()
		x.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			x.endDiscard(first, count)
			return ctxErr(ctx)
		}
		x.mu.Lock()
	}
	x.mu.Unlock()
	return nil
}

func (x *exclusion) endDiscard(first, count uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.Index(x.discards, extent{first, count})
	x.discards = slices.Delete(x.discards, i, i+1)
	x.wakeAll()
}

// waiting returns the channel that the next end closes. mu is held.
func (x *exclusion) waiting() chan struct{} {
	if x.wake == nil {
		x.wake = make(chan struct{})
	}
	return x.wake
}

func (x *exclusion) wakeAll() {
	if x.wake != nil {
		close(x.wake)
		x.wake = nil
	}
}
