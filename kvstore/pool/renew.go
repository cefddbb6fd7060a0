package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// One goroutine per lease does everything that changes its record after
// Acquire: renewals, and the release. So they never meet.

type freeRequest struct {
	ctx   context.Context
	reply chan error // buffered: the goroutine never waits for who asked
}

// start opens the fence and begins to renew; false if the pool is closed.
func (l *Lease) start(sent int64) bool {
	p := l.pool
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return false
	}
	p.leases[l] = struct{}{}
	p.mu.Unlock()
	l.moveFence(sent)
	go l.run()
	return true
}

// moveFence lets writes pass until a TTL, less the margin, after a renewal was
// sent.
func (l *Lease) moveFence(sent int64) { l.fence.Open(sent + int64(l.ttl-margin(l.ttl))) }

// maxPanics is how many renewals in a row may panic before the lease ends with an
// error: what waits for it would else wait for ever.
const maxPanics = 5

// run renews until the lease is released, lost to another holder, or abandoned. A
// panic in a renewal is a renewal that failed.
func (l *Lease) run() {
	defer func() {
		l.cancel()
		l.fence.Close()
		if l.share != nil {
			l.share.lock.free()
		}
		l.pool.mu.Lock()
		delete(l.pool.leases, l)
		l.pool.mu.Unlock()
		close(l.ended)
		l.wake()
	}()
	timer := time.NewTimer(l.ttl / 3)
	defer timer.Stop()
	panics := 0
	for {
		var ask *freeRequest
		select {
		case <-timer.C:
		case <-l.kick:
		case r := <-l.free:
			ask = &r
		case <-l.ctx.Done():
			l.end(kvstore.ErrClosed)
			return
		}
		if ask != nil {
			err := kvstore.Contain(func() error { return l.leave(ask.ctx) })
			kvstore.LogPanic(l.pool.opt.Log, "releasing the lease of "+l.volume.Name, err)
			if err == nil {
				l.end(fmt.Errorf("lease of %s was released: %w", l.volume.Name, kvstore.ErrFenced))
			}
			ask.reply <- err
			if err == nil {
				return
			}
		}
		next := l.ttl / 3
		err := kvstore.Contain(l.goOn)
		if kvstore.LogPanic(l.pool.opt.Log, "renewing the lease of "+l.volume.Name, err) {
			if panics++; panics == maxPanics {
				l.end(fmt.Errorf("lease of %s: %d renewals in a row ended in a panic: %w", l.volume.Name, panics, err))
				return
			}
		} else {
			panics = 0
		}
		l.lose(err)
		if errors.Is(err, ErrHeld) {
			l.end(err)
			return
		} else if err != nil {
			// Soon again, at random so that the holders of a server that comes back
			// do not all ask at once.
			next = l.ttl/12 + rand.N(l.ttl/12+1)
		}
		timer.Reset(next)
	}
}

// goOn renews a lease of either kind, and leave gives it back.
func (l *Lease) goOn() error {
	if l.share != nil {
		return l.renewShare()
	}
	return l.renew()
}

func (l *Lease) leave(ctx context.Context) error {
	if l.share != nil {
		return l.leaveShare(ctx)
	}
	return l.giveBack(ctx)
}

// renew stores the next sequence, or takes the lease again after it ran out;
// ErrHeld if somebody else has it, another error if the store does not answer.
func (l *Lease) renew() error {
	ctx, cancel := context.WithTimeout(l.ctx, max(l.ttl/3, 20*time.Millisecond))
	defer cancel()
	p := l.pool
	r, old, err := p.readLease(ctx, l.volume.UUID)
	switch {
	case errors.Is(err, kvstore.ErrCorrupt):
		r, err = nil, l.lostRecord(ctx)
	case err == nil && r == nil:
		err = l.lostRecord(ctx)
	case err == nil && (r.holder != l.mine.holder || r.generation != l.mine.generation || len(r.readers) > 0):
		// Readers: the answer to a release was lost, and they have it since.
		err = heldError(l.volume.Name, r)
	}
	if err != nil {
		return err
	}
	if r != nil {
		l.mine.sequence = r.sequence
	}
	l.mine.sequence++
	l.mine.poolVersion = p.table.Load().record.version
	sent := kvstore.Boottime()
	if err := p.writeLease(ctx, old, &l.mine); err != nil {
		return err
	}
	l.moveFence(sent)
	l.wake()
	return nil
}

// lostRecord decides whether the holder of a lease whose record is lost may
// write it again: the server must be the one that joined the pool, and the
// volume's record must still name this holder. Others wait for a TTL before they
// take a lost lease, and add is atomic, so there is never a second holder.
func (l *Lease) lostRecord(ctx context.Context) error {
	p := l.pool
	if err := p.checkSentinel(ctx, p.table.Load().master); err != nil {
		return err
	}
	v, err := p.Volume(ctx, l.volume.Name)
	switch {
	case errors.Is(err, ErrNoVolume), err == nil && v.UUID != l.volume.UUID:
		return fmt.Errorf("%w: %s was removed", ErrHeld, l.volume.Name)
	case err != nil:
		return err
	case v.Generation != l.mine.generation || v.last.id != l.mine.holder:
		return fmt.Errorf("%w: %s was taken by another holder", ErrHeld, l.volume.Name)
	}
	return nil
}

// giveBack marks the lease as free. The fence closes before that is sent: from
// then on somebody else may hold it.
func (l *Lease) giveBack(ctx context.Context) error {
	l.fence.Close()
	p := l.pool
	for try := 0; ; try++ {
		r, old, err := p.readLease(ctx, l.volume.UUID)
		if err != nil && !errors.Is(err, kvstore.ErrCorrupt) {
			return err
		}
		if err != nil || r == nil || !r.held || r.holder != l.mine.holder {
			return nil // nothing is held any more; a lost record makes others wait for a TTL
		}
		free := l.mine
		free.held, free.sequence = false, r.sequence+1
		if err := p.writeLease(ctx, old, &free); !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// Wait blocks while the lease is past its deadline and being renewed; nil when
// writes may go on, ErrHeld if another holder took it, kvstore.ErrServerLost if the
// server that has it was emptied, which no time mends, or ctx's error
// (kvstore.ErrAborted or ErrTimeout). After Release or Close it is ErrFenced or
// ErrClosed.
func (l *Lease) Wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		over, lost, changed := l.over, l.lost, l.changed
		l.mu.Unlock()
		if over != nil {
			return over
		}
		if l.fence.Passes() {
			return nil
		}
		if lost != nil {
			return lost
		}
		// Timers stand still while the machine sleeps, deadlines do not: after a
		// wake-up the next renewal may be far off.
		select {
		case l.kick <- struct{}{}:
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

// lose keeps what a renewal has found of the lease's server, for Wait: the next one
// that succeeds, or that says something else, takes it back.
func (l *Lease) lose(err error) {
	l.mu.Lock()
	if l.lost = nil; errors.Is(err, kvstore.ErrServerLost) {
		l.lost = err
	}
	lost := l.lost
	l.mu.Unlock()
	if lost != nil {
		l.wake()
	}
}

// Over says why Wait can never return nil again; nil while it may.
func (l *Lease) Over() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// Release gives the lease up. The caller has stopped writing and flushed. If it
// fails the lease is kept and renewed, and Release can be called again. Of a
// lease that another holder took nothing is left to release: nil.
func (l *Lease) Release(ctx context.Context) error {
	ask := freeRequest{ctx, make(chan error, 1)}
	select {
	case l.free <- ask:
		return <-ask.reply
	case <-l.ended:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// Abandon gives the lease up as a crash does: it stays this machine's in the store
// until it runs out, or until this machine takes it again.
func (l *Lease) Abandon() { l.abandon() }

// abandon stops the renewal and leaves the record as it is.
func (l *Lease) abandon() {
	l.cancel()
	<-l.ended
}

// end says why writes will never go on.
func (l *Lease) end(why error) {
	l.fence.Close()
	l.mu.Lock()
	l.over = why
	l.mu.Unlock()
	l.orphan()
	l.wake()
}

// wake lets everybody in Wait look again.
func (l *Lease) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}
