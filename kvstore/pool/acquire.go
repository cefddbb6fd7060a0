package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// acquisition is one Acquire while it runs.
type acquisition struct {
	lease *Lease
	opt   LeaseOptions
	began int64 // of CLOCK_BOOTTIME
	since time.Time
	fresh [16]byte // the holder id that is ours unless an old one is resumed

	seen      []byte // the record that is being watched; nil while there is none
	seenSince int64  // when it was first seen like this, 0 if not yet
	readers   watch  // those that share it
	alive     bool   // the record changed while it was watched
	told      bool
}

// maxAmbiguous bounds how often an acquisition goes on after an answer that says
// nothing about the outcome; it finds its own record if it was stored.
const maxAmbiguous = 2

// take makes the lease ours and returns when the request that did it was sent.
func (a *acquisition) take(ctx context.Context) (sent int64, err error) {
	l := a.lease
	for try, ambiguous := 0, 0; ; try++ {
		r, old, err := l.pool.readLease(ctx, l.volume.UUID)
		if errors.Is(err, kvstore.ErrCorrupt) {
			// As if it were lost: what the volume record says bounds the risk.
			r, err = nil, nil
		}
		if err != nil {
			return 0, err
		}
		if !a.mayTake(r, old) {
			if err := a.wait(ctx, r); err != nil {
				return 0, err
			}
			continue
		}
		if err := a.mayUpgrade(ctx, r); err != nil {
			return 0, err
		}
		a.prepare(r)
		a.inherit()
		sent = kvstore.Boottime()
		err = l.pool.writeLease(ctx, old, &l.mine)
		switch {
		case err == nil:
			return sent, nil
		case lostRace(err):
		case ambiguous < maxAmbiguous && errors.Is(err, kvstore.ErrUnreachable):
			ambiguous++
		default:
			return 0, err
		}
		if err := pause(ctx, try); err != nil {
			return 0, err
		}
	}
}

// mayTake says whether the lease can be taken now, as far as r tells; nil is a
// lost or new one.
func (a *acquisition) mayTake(r *leaseRecord, old stored) bool {
	now := kvstore.Boottime()
	last := a.lease.volume.last
	at, ttl, held := last.at, last.ttl, last.ttl > 0 // a volume that nobody ever held has none
	if r != nil {
		at, ttl, held = r.at, r.ttl, r.held
		if r.holder == a.fresh {
			return true // our own, stored by a try that did not learn it
		}
		if u := a.opt.Upgrade; u != nil && u.leftByHeir(r) {
			return true
		}
	}
	if r != nil && len(r.readers) > 0 {
		return a.opt.steal || !a.readersLeft(r, now)
	}
	if !held || a.opt.steal || a.gone(at, r == nil) {
		return true
	}
	if a.seenSince == 0 || !bytes.Equal(a.seen, old.raw.Value) {
		a.alive = a.alive || a.seenSince != 0
		a.seen, a.seenSince = old.raw.Value, now
		return false
	}
	return now-a.seenSince > int64(ttl)
}

// gone says whether a writer cannot be running any more, nor, if the record is
// lost, readers that may have been in it. Whoever resumes was the last to have it.
func (a *acquisition) gone(at hostID, lost bool) bool {
	p := a.lease.pool
	if at == p.host {
		return a.opt.Alone && (!lost || a.opt.Resume)
	}
	return p.rebooted(at)
}

// rebooted says that only this machine reaches the store, and that it was started
// anew since.
func (p *Pool) rebooted(at hostID) bool {
	return !p.st.Properties().Shared && at.boot != p.host.boot
}

// readersLeft says whether anybody who shares the lease may still read.
func (a *acquisition) readersLeft(r *leaseRecord, now int64) bool {
	left := false
	for i := range r.readers {
		d := &r.readers[i]
		if u := a.opt.Upgrade; u != nil && d.id == u.mine.holder || a.lease.pool.readerGone(d) {
			continue
		}
		state := a.readers.look(d, now)
		a.alive = a.alive || state == renewed
		left = left || state != silent
	}
	return left
}

// prepare fills in what the next record depends on.
func (a *acquisition) prepare(r *leaseRecord) {
	m, v := &a.lease.mine, &a.lease.volume
	m.holder, m.since = a.fresh, a.since
	resume := a.opt.Resume && v.last.ttl > 0
	if r == nil {
		m.sequence, m.generation = 1, v.Generation+1
		if resume && v.last.at == m.at {
			m.holder, m.generation = v.last.id, v.Generation
		}
		return
	}
	m.sequence = r.sequence + 1
	switch {
	case r.holder == a.fresh: // ours already
		m.generation = r.generation
	case resume && r.held && r.at == m.at && r.generation >= v.Generation:
		m.holder, m.generation, m.since = r.holder, r.generation, r.since
	default:
		m.generation = max(r.generation, v.Generation) + 1
	}
}

// wait lets a while pass before the next look; ErrHeld if waiting is over.
func (a *acquisition) wait(ctx context.Context, r *leaseRecord) error {
	volume := a.lease.volume.Name
	ttl := a.lease.volume.last.ttl
	if r != nil {
		ttl = max(r.ttl, longestTTL(r))
	}
	waited := time.Duration(kvstore.Boottime() - a.began)
	switch {
	case a.opt.Wait < 0,
		a.opt.Wait == 0 && a.alive,
		a.opt.Wait > 0 && waited >= a.opt.Wait:
		return heldError(volume, a.others(r))
	}
	if !a.told && a.opt.Notify != nil {
		a.told = true
		a.opt.Notify(waitMessage(volume, a.others(r), ttl))
	}
	// A tenth of the TTL finds a released or expired lease soon enough; the least
	// and the most keep short ones cheap and long ones responsive.
	d := min(max(ttl/10, time.Millisecond), time.Second)
	if a.opt.Wait > 0 {
		d = min(d, a.opt.Wait-waited)
	}
	return sleep(ctx, d)
}

func waitMessage(volume string, r *leaseRecord, ttl time.Duration) string {
	if r == nil {
		return fmt.Sprintf("the record of the lease of %s was lost: waiting up to %v for its last holder", volume, ttl)
	}
	if !r.held {
		return fmt.Sprintf("%s is open for reading on %s: waiting up to %v to see whether it still runs", volume, readersOf(r), ttl)
	}
	return fmt.Sprintf("%s is held by %s (pid %d) since %s: waiting up to %v to see whether it still runs",
		volume, r.hostname, r.pid, forPeople(r.since), ttl)
}
