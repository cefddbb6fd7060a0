package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A share can go on to a lease for writing, its heir, without a moment in which
// somebody else could write (LeaseOptions.Upgrade):
//
//   - the heir's record takes the place of the one that had the share's entry, if
//     nobody wrote since the share began. From then on what the share reads is good
//     for as long as the heir's fence passes;
//   - if the heir ends and nothing was written, the share takes the record over and
//     enters itself again. Until then the record says that it is held, which keeps
//     other machines out but not this one, so what is read waits;
//   - the generation that an heir raised is no other holder's, and ends no share.
//
// Both have one TTL, because each trusts deadlines that the other's record set.

// heir is the latest lease for writing that a share was to be upgraded to.
type heir struct {
	lease      *Lease // nil: there was none
	id         [16]byte
	generation uint64
	ends       int // how many heirs of the share have ended
	// past are heirs before this one, all of which have ended, since the share stored a
	// record of its own: the one that is stored may be theirs still. Never changed in place.
	past []holding
}

// holding is what a record is known by.
type holding struct {
	id         [16]byte
	generation uint64
}

// is says whether a record is the heir's or an earlier one's, held or given back.
func (h *heir) is(r *leaseRecord) bool {
	return h.lease != nil && r.holder == h.id && r.generation == h.generation || h.was(r)
}

// was says whether a record is an earlier heir's.
func (h *heir) was(r *leaseRecord) bool {
	return slices.Contains(h.past, holding{r.holder, r.generation})
}

// lives says whether the heir may renew its record, now or when it has begun.
func (h *heir) lives() bool { return h.lease != nil && h.lease.Over() == nil }

// heir returns what the share's is at this moment.
func (l *Lease) heir() heir {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.share.heir
}

// inherit names the heir of an upgraded share, before its record is sent.
func (a *acquisition) inherit() {
	u := a.opt.Upgrade
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	m, h := &a.lease.mine, &u.share.heir
	past := h.past
	if old := (holding{h.id, h.generation}); h.lease != nil && old != (holding{m.holder, m.generation}) {
		past = append(slices.Clip(past), old)
	}
	u.share.heir = heir{a.lease, m.holder, m.generation, h.ends, past}
}

// stored notes that the share has stored a record of its own: no earlier heir's can
// be there any more, nor come.
func (l *Lease) stored() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.share.heir.past = nil
}

// orphan closes the fence of the share that a lease took the place of: the lease
// has ended.
func (l *Lease) orphan() {
	u := l.upgrades
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.share.heir.lease == l {
		u.fence.Close()
		u.share.heir.ends++
	}
}

// letPass moves the fence of a share on, unless an heir ended since h was looked at.
func (l *Lease) letPass(deadline int64, h heir) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.share.heir.ends != h.ends {
		return errors.New("a lease for writing that a share was upgraded to has ended meanwhile")
	}
	l.fence.Open(deadline)
	return nil
}

// mayUpgrade is ErrHeld if somebody else may have written since the share that is
// to be upgraded began; r is the record that is to be replaced.
func (a *acquisition) mayUpgrade(ctx context.Context, r *leaseRecord) error {
	u := a.opt.Upgrade
	switch {
	case u == nil:
		return nil
	case r == nil:
		return u.lostShare(ctx)
	case u.untouched(r):
		return nil
	}
	return fmt.Errorf("%w: somebody else had %s while it was open for reading, close it everywhere here first", ErrHeld, u.volume.Name)
}

// untouched says whether nobody else can have written since a share began, as far
// as a record tells.
func (l *Lease) untouched(r *leaseRecord) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.share.heir.is(r) {
		l.mine.generation = r.generation
		return true
	}
	return !r.held && r.generation == l.mine.generation
}

// latest says whether a volume's record names no holder since a share began, other
// than its heir.
func (l *Lease) latest(v *Volume) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := &l.share.heir; h.lease != nil && v.Generation == h.generation {
		if v.last.id != h.id {
			return false
		}
		l.mine.generation = v.Generation
	}
	return v.Generation == l.mine.generation
}

// leftByHeir says whether a record is held by an heir that has ended: then it is
// the share's.
func (l *Lease) leftByHeir(r *leaseRecord) bool {
	h := l.heir()
	return r.held && (h.was(r) || h.is(r) && !h.lives())
}

// followHeir lets reads pass for as long as the heir's fence does. An error if that
// is closed for the time being.
func (l *Lease) followHeir(h heir) error {
	if d := h.lease.fence.Deadline(); d > l.fence.Deadline() {
		if err := l.letPass(d, h); err != nil {
			return err
		}
	}
	if !l.fence.Passes() {
		return errors.New("the lease for writing that a share is upgraded to is not valid")
	}
	l.wake()
	return nil
}

// fail ends a lease that cannot begin. What was taken is given back, or left to the
// share that was to be upgraded.
func (a *acquisition) fail(ctx context.Context, why error) error {
	if a.opt.Upgrade == nil {
		a.lease.undo(ctx, a.fresh)
	}
	a.lease.cancel()
	a.lease.end(why)
	return why
}

// others is a record without the share that is to be upgraded: for messages.
func (a *acquisition) others(r *leaseRecord) *leaseRecord {
	if u := a.opt.Upgrade; u != nil && r != nil {
		if i := r.reader(u.mine.holder); i >= 0 {
			rest := *r
			rest.readers = append(r.readers[:i:i], r.readers[i+1:]...)
			return &rest
		}
	}
	return r
}

// Ended says whether a holding is over, by its id and generation: it was given
// back, or somebody else had the volume since. What it left to be stored is of no
// use then. false if its record is lost and nobody followed yet.
func (p *Pool) Ended(ctx context.Context, volume string, id [16]byte, generation uint64) (bool, error) {
	v, err := p.Volume(ctx, volume)
	if err != nil {
		return false, err
	}
	r, _, err := p.readLease(ctx, v.UUID)
	switch {
	case errors.Is(err, kvstore.ErrCorrupt), err == nil && r == nil:
		return v.Generation > generation, nil
	case err != nil:
		return false, err
	}
	return r.generation > generation || r.generation == generation && r.holder == id && !r.held, nil
}
