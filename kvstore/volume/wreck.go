package volume

import "github.com/kvbfs/kvbfs/kvstore"

// wreck gives back what a worker held when a panic cut Do off, and fails the
// requests that had no result yet: else everybody who needs the same blocks, and
// the close of the volume, would wait for ever. The worker is of no use any more.
//
// It runs while the panic is on its way up, so that whoever recovers has the
// whole stack.
func (w *Worker) wreck() {
	w.broken = true
	// The channel first: what was sent of changes may still be executed, and a
	// store that is told so keeps newer changes back until that is over.
	err := kvstore.Contain(w.ch.Close)
	kvstore.LogPanic(w.set.logf, "closing the channel of a worker that panicked", err)
	for i := range w.slots {
		s := &w.slots[i]
		if s.claim < 0 && !s.excluding {
			continue
		}
		if m := s.job.m; m != nil && s.phase == phaseStore && !m.present(s.lba) {
			// Nobody knows whether it was stored: as after a time-out.
			m.suspect(s.lba)
			s.job.vol.reaper.kick(s.job.vol)
		}
		w.unclaim(s)
	}
	w.active, w.ops = w.active[:0], w.ops[:0]
	w.sent, w.fenced, w.later, w.again = false, nil, nil, nil
	for i := range w.njobs {
		w.jobs[i].err = kvstore.ErrPanic
	}
	w.finish(false)
}
