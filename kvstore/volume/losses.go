package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// LossClass says in which way a block that was written cannot be read any more.
type LossClass uint8

const (
	// Lost: the store does not have it.
	Lost LossClass = iota
	// Corrupt: what the store has is damaged: length or checksum are wrong.
	Corrupt
	// Misplaced: the store has another block of the same volume in its place.
	Misplaced
	// Foreign: the store has a block of another volume in its place, or what is no
	// block of kvbfs.
	Foreign

	lossClasses = iota
)

// String returns the word that logs and reports use.
func (c LossClass) String() string {
	return [...]string{"lost", "corrupt", "misplaced", "foreign"}[min(c, Foreign)]
}

// losses remembers what was reported, so that a block that is read again and
// again is one line in the log, and so that a write that heals it is counted.
type losses struct {
	some atomic.Bool // seen is not empty
	mu   sync.Mutex
	seen map[uint64]LossClass // guarded by mu; by LBA
}

// maxLosses bounds the memory; what comes after is counted only.
const maxLosses = 4096

// known returns the class under which a block was reported.
func (l *losses) known(lba uint64) (c LossClass, ok bool) {
	if !l.some.Load() {
		return 0, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok = l.seen[lba]
	return c, ok
}

// first notes a block and says whether it should be logged.
func (l *losses) first(lba uint64, c LossClass) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, ok := l.seen[lba]; ok && was == c || !ok && len(l.seen) >= maxLosses {
		return false
	}
	if l.seen == nil {
		l.seen = make(map[uint64]LossClass)
	}
	l.seen[lba] = c
	l.some.Store(true)
	return true
}

// full says that no more blocks are remembered.
func (l *losses) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen) >= maxLosses
}

// forget drops a block that is whole again and says whether it was known.
func (l *losses) forget(lba uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.seen[lba]
	delete(l.seen, lba)
	l.some.Store(len(l.seen) > 0)
	return ok
}

// markWait bounds how long the first EIO waits for the damaged mark, and for
// learning whose block a foreign one is.
const markWait = 5 * time.Second

// reportLost counts and logs a block that was written and is gone, and sees to it
// that the record says so before anybody gets the error.
func (v *Volume) reportLost(ctx context.Context, lba uint64) error {
	server := v.set.store.Locate(v.blockKey(lba)).Server
	v.report(ctx, lba, Lost, "server "+server+" no longer has it")
	return fmt.Errorf("%w: block %d of volume %s, server %s", ErrLost, lba, v.name, server)
}

// reportCorrupt is the same for a block of which the store has something else:
// err says what, data is what was read.
func (v *Volume) reportCorrupt(ctx context.Context, lba uint64, err error, data []byte) error {
	v.reportAs(ctx, lba, err, data)
	return err
}

// reportAs is reportCorrupt that returns the class.
func (v *Volume) reportAs(ctx context.Context, lba uint64, err error, data []byte) LossClass {
	class, what := v.classify(ctx, lba, err, data)
	v.report(ctx, lba, class, fmt.Sprintf("%s (%v)", what, err))
	return class
}

func (v *Volume) report(ctx context.Context, lba uint64, class LossClass, what string) {
	v.counters.bad[class].Add(1)
	if v.stale && !v.writable.Load() {
		return // who writes meanwhile may have discarded it
	}
	if v.losses.first(lba, class) {
		v.set.logf("volume %s: block %d (offset %d) is %v: %s", v.name, lba, lba*kvstore.BlockSize, class, what)
	}
	v.markDamaged(ctx)
}

func (v *Volume) blockKey(lba uint64) kvstore.Key { return kvstore.Key{Layer: v.layer, Number: lba} }

// healed counts a block that was bad and is whole again: a whole block was stored
// in its place, or it became zeros. sure: it was seen to be lost by who stored it.
func (v *Volume) healed(lba uint64, sure bool) {
	if known := v.losses.forget(lba); !known && !sure {
		return
	}
	v.counters.healed.Add(1)
	v.set.logf("volume %s: block %d, which was lost or damaged on server %s, was written anew",
		v.name, lba, v.set.store.Locate(v.blockKey(lba)).Server)
}

// classify says what is under the key of a block that cannot be read: data is
// what was read, err the store's finding.
func (v *Volume) classify(ctx context.Context, lba uint64, err error, data []byte) (LossClass, string) {
	server := v.set.store.Locate(v.blockKey(lba)).Server
	found := new(kvstore.CorruptError)
	if !errors.As(err, &found) || found.Length != kvstore.BlockSize {
		return Corrupt, "server " + server + " has it damaged"
	}
	if found.Mask == 0 {
		return Foreign, "server " + server + " has what kvbfs did not store"
	}
	m := v.m.Load()
	if n, ok := found.Origin(v.seed, v.layer, kvstore.KindBlock, v.blocks.Load(), data); ok && n != lba && (m == nil || m.present(n)) {
		return Misplaced, fmt.Sprintf("server %s has block %d in its place", server, n)
	}
	if c, ok := v.losses.known(lba); ok && c == Foreign {
		return c, "" // was logged, with what is looked up below
	}
	if v.losses.full() {
		return Corrupt, "server " + server + " has it damaged"
	}
	ctx, cancel := context.WithTimeout(ctx, markWait)
	defer cancel()
	recs, _ := v.set.pool.Volumes(ctx) // without them it counts as damaged
	for _, rec := range recs {
		for _, layer := range rec.Layers {
			if layer.ID == v.layer || layer.ID == 0 {
				continue
			}
			if n, ok := found.Origin(kvstore.Seed(layer.UUID), layer.ID, kvstore.KindBlock, blocksOf(rec.Size), data); ok {
				return Foreign, fmt.Sprintf("server %s has block %d of volume %s in its place", server, n, rec.Name)
			}
		}
	}
	return Corrupt, "server " + server + " has it damaged"
}

// errStaleMap: what is missing may have been discarded.
var errStaleMap = errors.New("it was open for reading, and somebody else wrote to it since")

// markRetry is how long losses do not try again to store the damaged mark: each
// would hold up its batch for markWait.
const markRetry = 30 * time.Second

// markDamaged enters the damaged mark in the record once. If that fails the error
// is given nevertheless, and a later loss tries again.
func (v *Volume) markDamaged(ctx context.Context) {
	if v.damaged.Load() || v.stale && !v.writable.Load() {
		return
	}
	if failed := v.markFailed.Load(); failed != 0 && kvstore.Boottime()-failed < int64(markRetry) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, markWait)
	defer cancel()
	_, err := v.set.pool.Update(ctx, v.name, func(r *pool.Volume) error {
		// A share knows the generation that an upgrade raised and then failed.
		share := v.reading.Load()
		if !v.writable.Load() && r.Generation != v.generation.Load() && (share == nil || r.Generation != share.Generation()) {
			return errStaleMap
		}
		r.Damaged = true
		return nil
	})
	if err != nil {
		v.markFailed.Store(kvstore.Boottime())
		v.set.logf("volume %s: cannot record that it is damaged: %v", v.name, err)
		return
	}
	v.damaged.Store(true)
}
