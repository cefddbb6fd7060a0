package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// ErrVolumeAborted: somebody gave the volume up (Set.Abort) while requests waited.
var ErrVolumeAborted = errors.New("volume was aborted")

// abortion is how a volume is given up: requests fail instead of waiting, and so
// does everything else that waits for a server on the volume's behalf.
type abortion struct {
	ctx  context.Context // ends with the abort
	call context.CancelFunc
}

func newAbortion() abortion {
	ctx, call := context.WithCancel(context.Background())
	return abortion{ctx, call}
}

// Abort fails all requests of a volume that is open, or being opened, here: those
// that wait and those that come. Its last Close then leaves the volume as a crash
// of the daemon would, without asking a server: the local state keeps what was
// acknowledged and not flushed, and the next open on this machine stores it. Until
// then it cannot be opened. kvstore.ErrAbsent if it is not open.
func (s *Set) Abort(name string) error {
	s.mu.Lock()
	v := s.open[name]
	if v == nil {
		v = s.opening[name]
	}
	s.mu.Unlock()
	if v == nil {
		return fmt.Errorf("volume %s is not open here: %w", name, kvstore.ErrAbsent)
	}
	if !v.aborted.Swap(true) {
		s.logf("volume %s: aborted: its requests fail until it was closed", name)
	}
	v.abortion.call()
	return nil
}

// Aborted says whether the volume was given up.
func (v *Volume) Aborted() bool { return v.aborted.Load() }

// patient returns a context that also ends when the volume is aborted. The caller
// calls done.
func (v *Volume) patient(ctx context.Context) (limited context.Context, done func()) {
	limited, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(v.abortion.ctx, cancel)
	return limited, func() { stop(); cancel() }
}

// abandon ends a volume as a crash would. Nobody uses it and the name is locked.
func (v *Volume) abandon() {
	v.reaper.halt()
	if l := v.lease.Load(); l != nil && v.writable.Load() {
		l.Abandon()
	}
	if l := v.reading.Swap(nil); l != nil {
		l.Abandon()
	}
	v.writable.Store(false)
	v.refs = 0
	v.set.setOpened(v.name, nil)
	v.set.forgotten(v.layer)
	v.m.Store(nil)
	if sf := v.state; sf != nil {
		v.state = nil
		sf.unlock()
		v.set.logf("volume %s: closed as a crash leaves it; what was acknowledged and is not flushed is in %s, and is stored when the volume is opened here again", v.name, sf.path)
	}
}

// bystander says whether a request failed only because another volume's abort
// ended the wait of the whole batch.
func (w *Worker) bystander(j *job) bool {
	return j.vol != nil && errors.Is(j.err, kvstore.ErrAborted) && !j.vol.aborted.Load() && w.patience.Context.Err() == nil
}
