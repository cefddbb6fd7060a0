package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// What was read of a volume that is open for reading is worth something if nobody
// wrote meanwhile. Who is past the deadline of the read lease cannot know, so the
// lease is looked at when the blocks are there, not before they are asked for, and
// then the answer waits: if the lease is renewed nobody wrote.

// doubtful says whether a request has read what may be mixed with what somebody
// wrote meanwhile. One look costs a system call, of volumes with a read lease only.
func (j *job) doubtful() bool {
	if j.req.Kind != Read || j.err != nil || j.vol == nil {
		return false
	}
	l := j.vol.reading.Load()
	return l != nil && !l.Fence().Passes()
}

// mayBeOvertaken says whether a block that cannot be read may be one that somebody
// discarded or wrote meanwhile. Then it is no loss yet.
func (s *slot) mayBeOvertaken(err error) bool {
	return (errors.Is(err, kvstore.ErrAbsent) || errors.Is(err, kvstore.ErrCorrupt)) && s.job.doubtful()
}

// doubts says whether any request of the batch is doubtful.
func (w *Worker) doubts() bool {
	for i := range w.njobs {
		if j := &w.jobs[i]; j.req != nil && j.doubtful() {
			return true
		}
	}
	return false
}

// believe waits for the read leases of what was read, or fails the requests. Unless it
// stays it is false when that took too long.
func (w *Worker) believe(ctx context.Context, until until) bool {
	for i := range w.njobs {
		j := &w.jobs[i]
		if j.req == nil || !j.doubtful() {
			continue
		}
		limited, cancel := w.limited(ctx, until)
		err := j.vol.mayBelieve(limited)
		late := limited.Err() != nil && ctx.Err() == nil
		cancel()
		if late && err != nil {
			return false
		}
		j.err = err
	}
	return true
}

// limited is the context of a wait that may be left. The caller calls cancel.
func (w *Worker) limited(ctx context.Context, until until) (limited context.Context, cancel func()) {
	if until == stays {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, lookLimit)
}

// mayBelieve waits until what was read so far is known to be whole; an error if it
// is not, or if nobody can tell in time.
func (v *Volume) mayBelieve(ctx context.Context) error {
	l := v.reading.Load()
	if l == nil || l.Fence().Passes() {
		return nil
	}
	err := l.Wait(ctx)
	if err != nil && !errors.Is(err, pool.ErrHeld) && v.reading.Load() != l {
		return nil // the lease for writing took its place: nobody wrote meanwhile
	}
	return overtaken(err)
}

// overtaken makes an I/O error of the loss of a lease.
func overtaken(err error) error {
	if errors.Is(err, pool.ErrHeld) {
		return fmt.Errorf("%w: %w", ErrOvertaken, err)
	}
	return err
}
