package volume

import (
	"context"
	"sync/atomic"
)

// counters are the Counters of a volume while it is open.
type counters struct {
	reads, writes, discards, flushes    atomic.Uint64
	readBytes, writeBytes, discardBytes atomic.Uint64
	hole, zero, partial                 atomic.Uint64
	bad                                 [lossClasses]atomic.Uint64
	healed, errs                        atomic.Uint64
}

// Counters of a volume since it was opened.
func (v *Volume) Counters() Counters {
	c := &v.counters
	n := Counters{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Discards: c.discards.Load(), Flushes: c.flushes.Load(),
		ReadBytes: c.readBytes.Load(), WriteBytes: c.writeBytes.Load(), DiscardBytes: c.discardBytes.Load(),
		HoleBlocks: c.hole.Load(), ZeroBlocks: c.zero.Load(), PartialBlocks: c.partial.Load(),
		LostBlocks: c.bad[Lost].Load(), CorruptBlocks: c.bad[Corrupt].Load(),
		MisplacedBlocks: c.bad[Misplaced].Load(), ForeignBlocks: c.bad[Foreign].Load(),
		HealedBlocks: c.healed.Load(), Errors: c.errs.Load(),
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
