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

// counters are the Counters of a volume while it is open.
type counters struct {
	reads, writes, discards, flushes    atomic.Uint64
	readBytes, writeBytes, discardBytes atomic.Uint64
	hole, zero, partial                 atomic.Uint64
	lost, corrupt, healed, errs         atomic.Uint64
}

// Counters of a volume since it was opened.
func (v *Volume) Counters() Counters {
	c := &v.counters
	n := Counters{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Discards: c.discards.Load(), Flushes: c.flushes.Load(),
		ReadBytes: c.readBytes.Load(), WriteBytes: c.writeBytes.Load(), DiscardBytes: c.discardBytes.Load(),
		HoleBlocks: c.hole.Load(), ZeroBlocks: c.zero.Load(), PartialBlocks: c.partial.Load(),
		LostBlocks: c.lost.Load(), CorruptBlocks: c.corrupt.Load(), HealedBlocks: c.healed.Load(),
		Errors: c.errs.Load(),
	}
	if m := v.m.Load(); m != nil {
		n.PendingDeletions = uint64(max(0, m.pend.Load()))
	}
	return n
}

// users counts the requests that are in progress on a volume, so that its map is
// not taken away under them.
type users struct {
	n    atomic.Int64 // lowered by usersGone while nobody may enter
	idle chan struct{}
}

const usersGone = 1 << 40

func (u *users) enter() bool {
	if u.n.Add(1) > 0 {
		return true
	}
	u.leave()
	return false
}

func (u *users) leave() {
	if u.n.Add(-1) == -usersGone {
		select {
		case u.idle <- struct{}{}:
		default:
		}
	}
}

// stop keeps new users out and waits for those inside. After an error nothing
// has changed.
func (u *users) stop(ctx context.Context) error {
	select {
	case <-u.idle: // of an earlier try
	default:
	}
	if u.n.Add(-usersGone) == -usersGone {
		return nil
	}
	select {
	case <-u.idle:
		return nil
	case <-ctx.Done():
		u.start()
		return ctxErr(ctx)
	}
}

// start lets users in again.
func (u *users) start() { u.n.Add(usersGone) }

// losses remembers what was reported, so that a block that is read again and
// again is one line in the log.
type losses struct {
	mu   sync.Mutex
	seen map[uint64]struct{} // guarded by mu
}

// maxLosses bounds the memory; what comes after is counted only.
const maxLosses = 4096

func (l *losses) first(lba uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[lba]; ok || len(l.seen) >= maxLosses {
		return false
	}
	if l.seen == nil {
		l.seen = make(map[uint64]struct{})
	}
	l.seen[lba] = struct{}{}
	return true
}

// markWait bounds how long the first EIO waits for the damaged mark.
const markWait = 5 * time.Second

// reportLost counts and logs a block that was written and is gone, and sees to it
// that the record says so before anybody gets the error.
func (v *Volume) reportLost(ctx context.Context, lba uint64) error {
	v.counters.lost.Add(1)
	key := kvstore.Key{Layer: v.layer, Number: lba}
	server := v.set.store.Locate(key).Server
	if v.losses.first(lba) {
		v.set.logf("volume %s: block %d (offset %d) is lost: server %s no longer has it", v.name, lba, lba*kvstore.BlockSize, server)
	}
	v.markDamaged(ctx)
	return fmt.Errorf("%w: block %d of volume %s, server %s", ErrLost, lba, v.name, server)
}

func (v *Volume) reportCorrupt(ctx context.Context, lba uint64, err error) error {
	v.counters.corrupt.Add(1)
	if v.losses.first(lba) {
		v.set.logf("volume %s: block %d (offset %d) is corrupt: %v", v.name, lba, lba*kvstore.BlockSize, err)
	}
	v.markDamaged(ctx)
	return err
}

// errStaleMap: what is missing may have been discarded.
var errStaleMap = errors.New("it was open for reading, and somebody else wrote to it since")

// markDamaged enters the damaged mark in the record once. If that fails the error
// is given nevertheless, and the next loss tries again.
func (v *Volume) markDamaged(ctx context.Context) {
	if v.damaged.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, markWait)
	defer cancel()
	_, err := v.set.pool.Update(ctx, v.name, func(r *pool.Volume) error {
		if !v.writable.Load() && r.Generation != v.generation.Load() {
			return errStaleMap
		}
		r.Damaged = true
		return nil
	})
	if err != nil {
		v.set.logf("volume %s: cannot record that it is damaged: %v", v.name, err)
		return
	}
	v.damaged.Store(true)
}
