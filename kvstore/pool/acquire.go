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
		a.prepare(r)
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
	}
	if !held || a.opt.steal || a.gone(at) {
		return true
	}
	if a.seenSince == 0 || !bytes.Equal(a.seen, old.raw.Value) {
		a.alive = a.alive || a.seenSince != 0
		a.seen, a.seenSince = old.raw.Value, now
		return false
	}
	return now-a.seenSince > int64(ttl)
}

// gone says whether a holder cannot be running any more.
func (a *acquisition) gone(at hostID) bool {
	p := a.lease.pool
	if at == p.host {
		return a.opt.Alone
	}
	// Only this machine reaches the store, and it was started anew since.
	return !p.st.Properties().Shared && at.boot != p.host.boot
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
		ttl = r.ttl
	}
	waited := time.Duration(kvstore.Boottime() - a.began)
	switch {
	case a.opt.Wait < 0,
		a.opt.Wait == 0 && a.alive,
		a.opt.Wait > 0 && waited >= a.opt.Wait:
		return heldError(volume, r)
	}
	if !a.told && a.opt.Notify != nil {
		a.told = true
		a.opt.Notify(waitMessage(volume, r, ttl))
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
	return fmt.Sprintf("%s is held by %s (pid %d) since %s: waiting up to %v to see whether it still runs",
		volume, r.hostname, r.pid, r.since.Local().Format("2006-01-02 15:04:05"), ttl)
}
