package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Close drops one reference. The last one of a writable volume stops writes,
// flushes, drains the pending deletions and releases the lease; if that fails
// the error is returned and the volume stays open for another try. Only when
// trying again cannot help, because the lease or a server's data is lost, it is
// closed all the same: as a crash would leave it, if what the other servers should
// have could not be stored either.
func (v *Volume) Close(ctx context.Context) error {
	unlock, err := v.set.lockName(ctx, v.name)
	if err != nil {
		return err
	}
	defer unlock()
	return v.closeLocked(ctx)
}

// closeLocked is Close with the name locked.
func (v *Volume) closeLocked(ctx context.Context) error {
	switch {
	case v.refs == 0:
		return kvstore.ErrClosed
	case v.refs > 1:
		v.refs--
		return nil
	}
	if err := v.use.stop(ctx); err != nil {
		return err
	}
	v.reaper.halt()
	closed := false // a panic leaves it so
	defer func() {
		if !closed {
			v.reaper.resume()
			v.use.start()
			v.reaper.kick(v)
		}
	}()
	var err error
	if v.writable.Load() {
		keep := false
		if err = ErrVolumeAborted; !v.aborted.Load() {
			limited, done := v.patient(ctx)
			keep, err = v.endWriting(limited)
			done()
		}
		if err != nil && v.aborted.Load() {
			v.abandon()
			closed = true
			return nil
		}
		if keep {
			v.abandon()
			closed = true
			return err
		}
		if err != nil && !errors.Is(err, pool.ErrHeld) && !errors.Is(err, kvstore.ErrServerLost) {
			return fmt.Errorf("close volume %s: %w", v.name, err)
		}
		v.writable.Store(false)
	}
	if l := v.lease.Load(); err != nil && l != nil {
		l.Abandon() // one that could not be released runs out
	}
	v.endReading(ctx)
	closed = true
	v.refs = 0
	v.set.setOpened(v.name, nil)
	v.set.forgotten(v.layer)
	if sf := v.state; sf != nil {
		v.state = nil
		v.m.Store(nil)
		sf.remove()
	}
	return err
}

// endWriting stores what is left and releases the lease. keep says that the local
// state alone has what servers that are left should have: the lease is kept, or the
// next open would drop it. Nobody uses the volume.
func (v *Volume) endWriting(ctx context.Context) (keep bool, err error) {
	err = v.set.withChannel(ctx, func(ch kvstore.Channel) error {
		if err := v.drain(ctx, ch); err != nil {
			return err
		}
		return v.flush(ctx, ch)
	})
	lease := v.lease.Load()
	if errors.Is(err, kvstore.ErrServerLost) {
		// The rest is stored as well as it can be, or blocks on the servers that are
		// left would be holes; then the holder's place is free.
		rest := v.set.withChannel(ctx, func(ch kvstore.Channel) error { return v.storeRest(ctx, ch) })
		lost := rest == nil || errors.Is(rest, kvstore.ErrServerLost)
		if !lost {
			v.set.logf("volume %s: part of what the servers that are left should have cannot be stored: %v", v.name, rest)
		}
		if lost || errors.Is(rest, pool.ErrHeld) { // somebody else wrote since: nobody will store it
			return false, errors.Join(err, lease.Release(ctx))
		}
		return true, fmt.Errorf("%w; on the servers that are left: %w", err, rest)
	}
	if err != nil {
		return false, err
	}
	// From here on the local state is worth nothing: all of it is stored.
	if err := v.state.void(); err != nil {
		return false, err
	}
	if err = lease.Release(ctx); err != nil && !errors.Is(err, pool.ErrHeld) {
		err = errors.Join(err, v.state.unvoid()) // it stays open
	}
	return false, err
}

// storeRest stores the pages that changed, and what was acknowledged before it was
// stored, as far as their servers are left. An error that is not of a lost server is
// told rather than one that is.
func (v *Volume) storeRest(ctx context.Context, ch kvstore.Channel) error {
	m := v.m.Load()
	if m == nil {
		return nil
	}
	err := v.flushMap(ctx, ch, m)
	if v.set.opt.Closed == nil {
		return err // no server need be waited for: all of it is stored
	}
	if rest := v.flushStore(ctx, ch); rest != nil && (err == nil || errors.Is(err, kvstore.ErrServerLost)) {
		err = rest
	}
	return err
}
