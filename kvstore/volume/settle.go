package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// settleRead looks at the result of a plain read, or of a verification.
func (w *Worker) settleRead(ctx context.Context, s *slot, err error) {
	v := s.job.vol
	if m := v.m.Load(); s.job.m != nil && m != nil {
		s.job.m = m // opened for writing since the request came; w is inside v.use
	}
	switch {
	case err == nil && s.job.m != nil && !s.job.m.present(s.lba):
		// Discarded since we asked. What came may be of a write that is not answered
		// yet, which the next reader does not see: so we must not have seen it.
		w.holeRead(s)
	case err == nil:
		if s.buf != nil {
			copy(s.data, s.buf[s.from:s.to])
		} else if s.job.m != nil {
			v.provisioned.note(s.lba, s.data) // a journal that is replayed
		}
		w.done(s, nil)
	case errors.Is(err, kvstore.ErrAbsent):
		switch {
		case s.job.m == nil || (s.phase == phaseVerify && !s.job.m.present(s.lba)):
			w.holeRead(s)
		case s.phase == phaseRead:
			s.phase = phaseVerify
		default:
			w.done(s, v.reportLost(ctx, s.lba))
		}
	case errors.Is(err, kvstore.ErrCorrupt):
		if s.job.m != nil && !s.job.m.present(s.lba) {
			w.holeRead(s) // discarded since
			return
		}
		if s.again {
			w.done(s, v.reportCorrupt(ctx, s.lba, err, s.op.Data))
		}
		s.again = true
	default:
		w.done(s, err)
	}
}

// settleModify looks at what a read-modify-write read.
func (w *Worker) settleModify(ctx context.Context, s *slot, err error) {
	v, m := s.job.vol, s.job.m
	switch {
	case err == nil:
		w.merged(s)
	case errors.Is(err, kvstore.ErrAbsent) && (m == nil || !m.present(s.lba)):
		s.known = false
		clear(s.buf)
		w.merged(s)
	case errors.Is(err, kvstore.ErrAbsent) && s.again:
		w.done(s, v.reportLost(ctx, s.lba))
	case errors.Is(err, kvstore.ErrCorrupt) && s.again:
		w.done(s, v.reportCorrupt(ctx, s.lba, err, s.op.Data))
	case errors.Is(err, kvstore.ErrAbsent), errors.Is(err, kvstore.ErrCorrupt):
		s.again = true
	default:
		w.done(s, err)
	}
}

// settleStore looks at the result of a write or, where the store keeps presence,
// of a discard.
func (w *Worker) settleStore(ctx context.Context, s *slot, err error) {
	m := s.job.m
	switch {
	case m == nil:
		w.done(s, err)
	case err == nil:
		w.stored(s)
	case errors.Is(err, kvstore.ErrAbsent):
		w.storeMissed(ctx, s)
	case errors.Is(err, kvstore.ErrExists):
		// A leftover of a crash or of a discard whose deletion is still to come.
		s.op.Expect = kvstore.Present
		w.tryAgain(s)
	case errors.Is(err, kvstore.ErrFull) && !s.vital && s.job.req.Kind == Write && s.job.vol.provisioned.noted(s.op.Data):
		s.vital = true // its journal has it already
		w.tryAgain(s)
	default:
		if outcomeUnknown(err) && !m.present(s.lba) {
			m.suspect(s.lba)
			s.job.vol.reaper.kick(s.job.vol)
		}
		w.done(s, err)
	}
}

// outcomeUnknown says whether a write may have been executed though it failed.
func outcomeUnknown(err error) bool {
	for _, sure := range []error{kvstore.ErrFull, kvstore.ErrFenced, kvstore.ErrInvalid, kvstore.ErrUnsupported} {
		if errors.Is(err, sure) {
			return false
		}
	}
	return true
}

// stored notes a block that the store has acknowledged.
func (w *Worker) stored(s *slot) {
	m := s.job.m
	if s.heals || s.job.vol.losses.some.Load() {
		s.job.vol.healed(s.lba, s.heals)
	}
	if !s.op.Deferred && (!s.partial() || !s.known) {
		m.set(s.lba)
		w.done(s, nil)
		return
	}
	if m.present(s.lba) {
		// On since before we read it; nobody else turns it on under our claim. It
		// is not turned on again: a discard that comes now must not bring back what
		// we read before it.
		w.done(s, nil)
		return
	}
	if !s.partial() {
		// Deferred, and a discard came between: what the store has is what was
		// discarded. The bit comes on again when it has this block.
		s.known = false
		w.expectUnknown(s)
		w.tryAgain(s)
		return
	}
	w.mergeOverZeros(s)
}

// mergeOverZeros begins the write of a partial block again: a discard dropped
// what was read.
func (w *Worker) mergeOverZeros(s *slot) {
	s.known = false
	clear(s.buf)
	if w.merged(s) {
		w.tryAgain(s)
	}
}

// storeMissed handles a write that expected the block to be there.
func (w *Worker) storeMissed(ctx context.Context, s *slot) {
	v := s.job.vol
	lost := s.known && s.job.m.present(s.lba)
	switch {
	case lost && s.partial():
		w.done(s, v.reportLost(ctx, s.lba))
		return
	case lost && s.op.Expect == kvstore.Present && s.tries == 0:
		s.heals = true
	case s.known && s.partial():
		w.mergeOverZeros(s)
		return
	}
	s.op.Expect = kvstore.Absent
	w.tryAgain(s)
}

// tryAgain leaves a write in work for the next round, within bounds.
func (w *Worker) tryAgain(s *slot) {
	if s.tries++; s.tries > maxTries {
		w.done(s, &kvstore.OpError{Op: "write", Key: s.op.Key, Err: kvstore.ErrConflict})
	}
}

// restart puts a write that was not sent back to where it takes its claim.
func (w *Worker) restart(s *slot) {
	w.unclaim(s)
	s.again = false
	if s.partial() {
		s.phase = phaseModify
	}
}

// afterFence waits until the lease of a volume is valid again, or fails what
// wants to write to it; if it is open for reading, what reads. Unless it stays it waits
// for a moment only: who finds the lease as it was comes back.
func (w *Worker) afterFence(ctx context.Context, v *Volume, until until) {
	limited, cancel := w.limited(ctx, until)
	defer cancel()
	reads := v.reading.Load() != nil
	err := v.mayBelieve(limited)
	if !reads {
		err = v.waitLease(limited)
	}
	if err == nil || limited.Err() != nil && ctx.Err() == nil {
		return
	}
	for _, s := range w.active {
		if s.job.vol == v && reads || s.job.vol == v && s.phase != phaseRead && s.phase != phaseVerify {
			w.done(s, err)
		}
	}
	w.compact()
}
