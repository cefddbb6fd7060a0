package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Readers share a volume's lease while nobody may write. Each has an entry in the
// record, which it renews as a writer does, and trusts what it has read until its
// deadline; later it waits for a renewal before it believes anything.
//
//   - A writer takes the lease once every reader has left, or was silent for its
//     TTL. Then there are no entries any more and the generation has risen.
//   - A reader that is late, or whose entry somebody dropped, enters itself again
//     if the generation is still the one that it began with: nobody wrote then. Else
//     it reads no more.
//   - While somebody writes, nobody may enter.
//
// Each reader has a locked file in the runtime directory: so the next one on this
// machine need not wait for one that was killed (readerlock.go).

// share is what a Lease for reading has beside one for writing. The goroutine that
// renews it uses it; before, who acquires it.
type share struct {
	lock   *readerLock
	others watch
	heir   heir // guarded by Lease.mu
	// beat is what our entry says. It goes on when others dropped the entry and it is
	// made again: from 1 on it could look to somebody as if it had stood still.
	beat uint64
}

// AcquireShared takes a share of a volume's lease: its Fence passes while nobody can
// be writing. ErrHeld, wrapped with the holder's name, if somebody holds the lease
// for writing. Alone, Resume and Upgrade have no effect.
func (p *Pool) AcquireShared(ctx context.Context, volume string, opt LeaseOptions) (*Lease, error) {
	l, opt, err := p.newLease(ctx, volume, opt)
	if err != nil {
		return nil, err
	}
	lock, err := p.lockReader(l.mine.holder)
	if err != nil {
		l.cancel()
		return nil, fmt.Errorf("acquire %s for reading: %w", volume, err)
	}
	opt.Alone, opt.Resume = false, false
	l.mine.held, l.share = false, &share{lock: lock}
	a := acquisition{lease: l, opt: opt, began: kvstore.Boottime()}
	sent, err := a.join(ctx)
	if err == nil {
		err = l.boundLoss(ctx)
		if err == nil && !l.start(sent) {
			err = fmt.Errorf("acquire %s for reading: %w", volume, kvstore.ErrClosed)
		}
		if err != nil {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			_ = l.leaveShare(end) // else it runs out
			cancel()
		}
	}
	if err != nil {
		l.cancel()
		lock.free()
		return nil, err
	}
	return l, nil
}

// join enters us among the readers and returns when the request that did was sent.
func (a *acquisition) join(ctx context.Context) (sent int64, err error) {
	l := a.lease
	for try, ambiguous := 0, 0; ; try++ {
		r, old, err := l.pool.readLease(ctx, l.volume.UUID)
		if errors.Is(err, kvstore.ErrCorrupt) {
			r, err = nil, nil // as if it were lost
		}
		switch {
		case err != nil:
			return 0, err
		case r != nil && r.held:
			return 0, heldError(l.volume.Name, r)
		case r == nil && !a.mayShareLost(old):
			if err := a.wait(ctx, r); err != nil {
				return 0, err
			}
			continue
		}
		next, err := l.withMe(r)
		if err != nil {
			return 0, err
		}
		l.mine.generation = next.generation
		sent = kvstore.Boottime()
		err = l.pool.writeLease(ctx, old, next)
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

// mayShareLost says whether the writer that a lost record may have named has
// stopped by now.
func (a *acquisition) mayShareLost(old stored) bool {
	last := a.lease.volume.last
	if last.ttl == 0 || a.gone(last.at, true) {
		return true
	}
	if a.seenSince == 0 || !bytes.Equal(a.seen, old.raw.Value) {
		a.seen, a.seenSince = old.raw.Value, kvstore.Boottime()
		return false
	}
	return kvstore.Boottime()-a.seenSince > int64(last.ttl)
}

// boundLoss sees to it that the volume's record names a TTL that covers ours: who
// finds the lease's record lost waits for that long. A record that this version may
// not change is left: no writer of this version can follow.
func (l *Lease) boundLoss(ctx context.Context) error {
	if l.volume.last.ttl >= l.ttl || writable(l.volume.ROCompat) != nil {
		return nil
	}
	_, err := l.pool.Update(ctx, l.volume.Name, func(v *Volume) error {
		if v.UUID != l.volume.UUID {
			return fmt.Errorf("%w: %s was removed and made anew", ErrNoVolume, v.Name)
		}
		v.last.ttl = max(v.last.ttl, l.ttl)
		return nil
	})
	return err
}

// withMe returns the record that follows r (nil: there is none), with our entry
// renewed or made, and without those of readers that are gone.
func (l *Lease) withMe(r *leaseRecord) (*leaseRecord, error) {
	next := l.following(r)
	s, now := l.share, kvstore.Boottime()
	next.readers = slices.DeleteFunc(next.readers, func(d reader) bool {
		return d.id != l.mine.holder && (l.pool.readerGone(&d) || s.others.look(&d, now) == silent)
	})
	maps.DeleteFunc(s.others, func(id [16]byte, _ sighting) bool { return next.reader(id) < 0 })
	if i := next.reader(l.mine.holder); i >= 0 {
		s.beat = max(s.beat, next.readers[i].beat) + 1
		next.readers[i].beat = s.beat
		return next, nil
	}
	if len(next.readers) >= maxReaders {
		return nil, fmt.Errorf("%w: %s has %d readers already", ErrHeld, l.volume.Name, len(next.readers))
	}
	m := &l.mine
	s.beat++
	next.readers = append(next.readers, reader{id: m.holder, at: m.at, pid: m.pid, ttl: l.ttl, beat: s.beat, since: m.since, hostname: m.hostname})
	return next, nil
}

// following is a copy of a record that may be changed and stored after it.
func (l *Lease) following(r *leaseRecord) *leaseRecord {
	next := leaseRecord{volume: l.volume.UUID}
	if r != nil {
		next = *r
		next.readers = slices.Clone(r.readers)
	}
	next.tail, next.held = nil, false // it is free, shared, or was left by our heir
	next.generation = max(next.generation, l.volume.Generation, l.Generation())
	next.sequence++
	next.poolVersion = l.pool.table.Load().record.version
	return &next
}

// renewShare renews our entry; ErrHeld if somebody may have written meanwhile,
// another error if the store does not answer.
func (l *Lease) renewShare() error {
	ctx, cancel := context.WithTimeout(l.ctx, max(l.ttl/3, 20*time.Millisecond))
	defer cancel()
	p := l.pool
	for try := 0; ; try++ {
		h, generation := l.heir(), l.Generation()
		r, old, err := p.readLease(ctx, l.volume.UUID)
		lost := errors.Is(err, kvstore.ErrCorrupt) || err == nil && r == nil
		switch {
		case err == nil && r != nil && !l.untouched(r):
			if l.heir().lease != h.lease || l.Generation() != generation {
				continue // an heir came meanwhile, so this record may be an older one
			}
			err = fmt.Errorf("read lease ended: %w", heldError(l.volume.Name, r))
		case (lost || err == nil && r.held) && h.lives():
			return l.followHeir(h) // which restores what is lost
		case lost:
			r, err = nil, l.lostShare(ctx)
		}
		if err != nil {
			return err
		}
		next, err := l.withMe(r)
		if err != nil {
			return err
		}
		sent := kvstore.Boottime()
		err = p.writeLease(ctx, old, next)
		if err == nil {
			l.stored()
			if err = l.letPass(sent+int64(l.ttl-margin(l.ttl)), h); err == nil {
				l.wake()
			}
			return err
		}
		if !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil { // another reader was faster
			return err
		}
	}
}

// lostShare decides whether a reader may enter itself again though the record of
// the lease is lost: a writer would have put its generation into the volume's.
func (l *Lease) lostShare(ctx context.Context) error {
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
	case !l.latest(&v):
		return fmt.Errorf("%w: %s was written to by another holder", ErrHeld, l.volume.Name)
	}
	return nil
}

// leaveShare takes our entry out of the record. The fence closes first.
func (l *Lease) leaveShare(ctx context.Context) error {
	l.fence.Close()
	for try := 0; ; try++ {
		r, old, err := l.pool.readLease(ctx, l.volume.UUID)
		if err != nil && !errors.Is(err, kvstore.ErrCorrupt) {
			return err
		}
		if err != nil || r == nil || r.reader(l.mine.holder) < 0 && !l.leftByHeir(r) {
			return nil
		}
		next := l.following(r)
		next.readers = slices.DeleteFunc(next.readers, func(d reader) bool { return d.id == l.mine.holder })
		if err := l.pool.writeLease(ctx, old, next); !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// watch is what was seen of readers, by id. Only the own clock counts.
type watch map[[16]byte]sighting

type sighting struct {
	beat  uint64
	since int64 // of CLOCK_BOOTTIME, when the beat was first seen
}

// sight is what a look at a reader tells.
type sight uint8

const (
	watched sight = iota // not known yet
	renewed              // alive: the entry changed between two looks
	silent               // unchanged for a whole TTL
)

// look notes an entry as it is now.
func (w *watch) look(d *reader, now int64) sight {
	if *w == nil {
		*w = watch{}
	}
	was, ok := (*w)[d.id]
	switch {
	case !ok || was.beat != d.beat:
		(*w)[d.id] = sighting{d.beat, now}
		if ok {
			return renewed
		}
	case now-was.since > int64(d.ttl):
		return silent
	}
	return watched
}

// longestTTL is how long the readers of a record keep it at most.
func longestTTL(r *leaseRecord) (ttl time.Duration) {
	for _, d := range r.readers {
		ttl = max(ttl, d.ttl)
	}
	return ttl
}

// maxNamed bounds how many readers a message names.
const maxNamed = 3

// readersOf names them.
func readersOf(r *leaseRecord) string {
	var names []string
	for i, d := range r.readers {
		if i == maxNamed {
			names = append(names, fmt.Sprintf("%d more", len(r.readers)-i))
			break
		}
		names = append(names, fmt.Sprintf("%s (pid %d, since %s)", d.hostname, d.pid, forPeople(d.since)))
	}
	return strings.Join(names, " and ")
}

// readerGone says whether a reader cannot be running any more.
func (p *Pool) readerGone(d *reader) bool {
	if d.at == p.host {
		return p.readerUnlocked(d.id)
	}
	return p.rebooted(d.at)
}
