package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// What is lost is EIO until somebody says that it is accepted. Survey finds what
// that would mean and changes nothing; Repair makes the map true: blocks that
// cannot be read become holes, pages of the map that are lost are made anew, with
// the bits of those blocks of their range whose keys are there and intact. The
// consent is recorded with the volume.
//
// A page that is lost took along which blocks of its range had been discarded: one
// whose key was not deleted yet comes back with its last content. Blocks of the
// range that are absent may be lost or may never have been written; nobody can
// tell, so they are counted apart.

// ErrUnaccepted: a server with blocks of the volume was emptied or replaced, and
// the loss was not accepted.
var ErrUnaccepted = errors.New("volume lost what a server had, and nobody accepted that yet")

func unaccepted(name string) error {
	return fmt.Errorf("%w: `kvbfs volume repair %s` tells what is lost", ErrUnaccepted, name)
}

// survey is a walk over all blocks of a volume that nobody uses.
type survey struct {
	v        *Volume
	m        *presence
	ch       kvstore.Channel
	gone     []int           // servers that were emptied
	unknown  map[uint64]bool // level 0 pages that were lost
	bad      func(lba uint64)
	progress func(done, total int64)
	found    Damage

	reads scanReads
}

// Survey reads every block of a volume that is not open and tells what is lost. It
// writes nothing, and so takes no lease. It works on a pool that was opened with
// pool.Options.Damaged: what emptied servers had is lost without being asked for.
// ErrInUse or pool.ErrHeld if somebody has the volume. progress may be nil; it is
// told how far it is in blocks.
func (s *Set) Survey(ctx context.Context, name string, progress func(done, total int64)) (Damage, error) {
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return Damage{}, err
	}
	defer unlock()
	if s.opened(name) != nil {
		return Damage{}, fmt.Errorf("%w: %s is open", ErrInUse, name)
	}
	rec, err := s.record(ctx, name)
	if err != nil {
		return Damage{}, err
	}
	if h, held, err := s.pool.Holder(ctx, name); err != nil {
		return Damage{}, err
	} else if held && !h.SameHost {
		return Damage{}, fmt.Errorf("%w: %s is held by %s (pid %d): unmount it there", pool.ErrHeld, name, h.Host, h.PID)
	}
	sf, left, err := s.localState(rec)
	if err != nil {
		return Damage{}, err
	}
	defer sf.leave()
	y := &survey{v: s.newVolume(name, rec), gone: s.pool.Lost(), progress: progress}
	y.v.take(rec)
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		y.ch = ch
		if s.prop.Presence {
			return y.extents(ctx)
		}
		l := newLoader(rec)
		l.m, l.mourn = newPresence(l.blocks), true
		if err := l.load(ctx, ch); err != nil {
			return err
		}
		y.m = l.m
		if left {
			if err := l.m.addState(sf); err != nil {
				return err
			}
		} else {
			y.lostPages(l.lost)
		}
		y.v.m.Store(l.m)
		return y.walk(ctx)
	})
	y.found.init()
	return y.found, err
}

// localState locks the local state of a volume; left says that a crash left it.
func (s *Set) localState(rec pool.Volume) (sf *stateFile, left bool, err error) {
	if sf, err = lockState(s.opt.RuntimeDir, rec.UUID); err != nil {
		return nil, false, err
	}
	head, left := sf.head()
	return sf, left && head.boot == bootID() && head.pool == s.pool.UUID() && head.volume == rec.UUID &&
		head.generation == rec.Generation && (s.prop.Presence || sf.hasMap()), nil
}

// addState adds the blocks that the local state of a crash has.
func (m *presence) addState(sf *stateFile) error {
	was, err := sf.mapping(true)
	if err != nil {
		return err
	}
	for p := range was.pages() {
		if (p+1)*wordsPerPage > uint64(len(m.bits[0])) {
			break
		}
		setBit(m.bits[1], p)
		for i := p * wordsPerPage; i < (p+1)*wordsPerPage; i++ {
			m.bits[0][i] |= atomic.LoadUint64(&was.bits[0][i])
		}
	}
	return nil
}

// Repair accepts the loss of everything in a volume that cannot be read, and makes
// the map say so. The pool must know all of its servers (pool.AcceptLost). After
// an error, call it again. ErrInUse or pool.ErrHeld if somebody has the volume.
func (s *Set) Repair(ctx context.Context, name string, progress func(done, total int64)) (found Damage, err error) {
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return found, err
	}
	defer unlock()
	if s.opened(name) != nil {
		return found, fmt.Errorf("%w: %s is open", ErrInUse, name)
	}
	rec, err := s.record(ctx, name)
	if err != nil {
		return found, err
	}
	v := s.newVolume(name, rec)
	v.accepting = true
	if err := v.startWriting(ctx, nil); err != nil {
		return found, fmt.Errorf("open volume %s: %w", name, err)
	}
	v.refs = 1
	s.setOpened(name, v)
	defer func() { err = errors.Join(err, v.closeLocked(context.WithoutCancel(ctx))) }()
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		y := &survey{v: v, m: v.m.Load(), ch: ch, progress: progress}
		y.found.init()
		y.lostPages(v.lostPages)
		y.bad = func(lba uint64) { y.m.clear(lba, 1) }
		var err error
		if s.prop.Presence {
			y.bad = nil
			if err = y.extents(ctx); err == nil && y.found.Blocks() > 0 {
				err = fmt.Errorf("%w: where the store keeps presence, write the blocks anew or discard them", kvstore.ErrUnsupported)
			}
		} else {
			err = y.walk(ctx)
		}
		found = y.found
		if err != nil {
			return err
		}
		return v.accept(ctx, ch, &found)
	})
	return found, err
}

// accept records the consent, stores the map that is true now, deletes what is of
// no use any more, and takes the marks off the volume's record, in this order.
func (v *Volume) accept(ctx context.Context, ch kvstore.Channel, d *Damage) error {
	if d.Blocks()+d.Pages > 0 {
		host, _ := os.Hostname()
		if err := v.set.pool.AddConsent(ctx, v.uuid, pool.Consent{
			Time: time.Now().UTC(), Lost: d.Lost, Corrupt: d.Corrupt + d.Misplaced + d.Foreign, Unknown: d.Unknown, Pages: d.Pages, Host: host,
		}); err != nil {
			return err
		}
	}
	if err := v.flush(ctx, ch); err != nil {
		return err
	}
	if err := v.drain(ctx, ch); err != nil {
		return err
	}
	_, err := v.set.pool.Update(ctx, v.name, func(r *pool.Volume) error {
		r.Damaged, r.Unaccepted = false, false
		return nil
	})
	if err == nil {
		v.damaged.Store(false)
		v.set.logf("volume %s: the loss of %d blocks was accepted, and of %d that may never have been written", v.name, d.Blocks()-d.Unknown, d.Unknown)
	}
	return err
}

func (y *survey) lostPages(lost []pageID) {
	y.unknown = map[uint64]bool{}
	for _, id := range lost {
		y.found.Pages++
		if id.level == 0 {
			y.unknown[id.n] = true
		}
	}
}

// walk reads all blocks that the map has.
func (y *survey) walk(ctx context.Context) error {
	var err error
	for p := range y.m.pages() {
		words := y.m.bits[0][p*wordsPerPage : (p+1)*wordsPerPage]
		eachBit(words, func(n uint64) bool {
			y.reads.read(y.v, p*bitsPerPage+n)
			if len(y.reads.ops) == scanBatch {
				err = y.look(ctx)
			}
			return err == nil
		})
		if err == nil {
			err = y.look(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// look reads a batch and enters what is bad.
func (y *survey) look(ctx context.Context) error {
	if len(y.reads.ops) == 0 {
		return nil
	}
	defer y.reads.reset()
	v := y.v
	ask := y.reads.batch[:0:0]
	for _, op := range y.reads.batch {
		op.Err = kvstore.ErrAbsent
		if !slices.Contains(y.gone, v.set.pool.Server(op.Key)) {
			ask = append(ask, op)
		}
	}
	for range 2 { // what is absent or damaged is asked for once more
		if len(ask) > 0 {
			y.ch.Do(ctx, ask)
		}
		ask = slices.DeleteFunc(ask, func(op *kvstore.Op) bool { return op.Err == nil })
	}
	for i := range y.reads.ops {
		op := &y.reads.ops[i]
		lba, class := op.Key.Number, Lost.String()
		switch {
		case op.Err == nil:
			continue
		case errors.Is(op.Err, kvstore.ErrCorrupt):
			c, _ := v.classify(ctx, lba, op.Err, op.Data)
			class = c.String()
		case !errors.Is(op.Err, kvstore.ErrAbsent):
			return op.Err
		case y.unknown[lba/bitsPerPage]:
			class = unknownClass
		}
		y.found.add(lba, class, v.set.store.Locate(op.Key).Server)
		if y.bad != nil {
			y.bad(lba)
		}
	}
	if y.progress != nil {
		y.progress(int64(y.reads.ops[len(y.reads.ops)-1].Key.Number)+1, int64(v.blocks.Load()))
	}
	return nil
}

// extents reads all blocks that a store has which keeps presence.
func (y *survey) extents(ctx context.Context) error {
	v := y.v
	for at := uint64(0); ; {
		begin, err := v.set.store.NextExtent(ctx, v.layer, at, true)
		if errors.Is(err, kvstore.ErrAbsent) || err == nil && begin >= v.blocks.Load() {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := v.set.store.NextExtent(ctx, v.layer, begin, false)
		if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
			return err
		}
		for at = begin; at < min(max(end, begin+1), v.blocks.Load()); at++ {
			y.reads.read(v, at)
			if len(y.reads.ops) == scanBatch {
				if err := y.look(ctx); err != nil {
					return err
				}
			}
		}
		if err := y.look(ctx); err != nil {
			return err
		}
	}
}
