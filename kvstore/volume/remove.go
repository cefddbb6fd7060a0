package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Remove deletes a volume and all of its blocks: ErrInUse if it is open here or
// held elsewhere. progress, if not nil, is told how many blocks are gone of how
// many. A removal that was interrupted is resumed by the next Remove or Resume.
func (s *Set) Remove(ctx context.Context, name string, progress func(done, total int64)) error {
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if s.opened(name) != nil {
		return fmt.Errorf("remove volume %s: %w", name, ErrInUse)
	}
	rec, err := s.pool.Volume(ctx, name)
	if err != nil {
		return err
	}
	sf, err := lockState(s.opt.RuntimeDir, rec.UUID)
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	keep := true
	defer func() {
		if keep {
			sf.unlock()
		} else {
			sf.remove()
		}
	}()
	uuid := rec.UUID
	head, left := sf.head()
	left = left && head.boot == bootID() && head.volume == rec.UUID &&
		(s.prop.Presence || sf.hasMap())
	lease, err := s.acquire(ctx, name, rec.UUID, left, nil)
	if errors.Is(err, pool.ErrHeld) {
		return fmt.Errorf("remove volume %s: %w: %w", name, ErrInUse, err)
	}
	if err != nil {
		return err
	}
	resumed := left && lease.ID() == head.holder && lease.Generation() == head.generation
	if rec, err = s.pool.Update(ctx, name, func(r *pool.Volume) error {
		r.State = pool.Removing
		return nil
	}); err == nil && rec.MapHeight > 0 {
		err = s.withChannel(ctx, func(ch kvstore.Channel) error {
			d := &removal{set: s, rec: rec, ch: ch, lease: lease, progress: progress}
			if resumed {
				d.left = sf
			}
			return d.run(ctx)
		})
	} else if err == nil && progress != nil {
		progress(1, 1)
	}
	if err != nil && resumed {
		// As after a recovery that failed: what the crash left stays valid.
		s.keepLease(uuid, lease)
	} else {
		err = errors.Join(err, lease.Release(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	if err := s.pool.ForgetVolume(ctx, name); err != nil {
		return err
	}
	keep = false
	return nil
}

// ResumeRemovals finishes what an interrupted Remove left.
func (s *Set) ResumeRemovals(ctx context.Context) error {
	recs, err := s.pool.Volumes(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, rec := range recs {
		if rec.State == pool.Removing {
			errs = append(errs, s.Remove(ctx, rec.Name, nil))
		}
	}
	return errors.Join(errs...)
}

// removal deletes all keys of a volume: blocks first, then pages from below, so
// that what an interruption leaves is still found from the top.
type removal struct {
	set      *Set
	rec      pool.Volume
	left     *stateFile // of a crash, if it is still valid
	ch       kvstore.Channel
	lease    *pool.Lease
	progress func(done, total int64)

	ops         []kvstore.Op
	done, total int64
}

// removeBatch is how many keys are deleted at once.
const removeBatch = kvstore.MaxBatch

func (d *removal) run(ctx context.Context) error {
	l := newLoader(d.rec)
	l.m = newPresence(l.blocks)
	if err := l.load(ctx, d.ch); err != nil {
		return err
	}
	if d.left != nil {
		if err := d.addLeft(l.m); err != nil {
			return err
		}
		l.m.recount()
	}
	d.total = l.m.count.Load()
	var err error
	each := func(kind kvstore.Kind) func(n uint64) bool {
		return func(n uint64) bool {
			err = d.add(ctx, kvstore.Key{Layer: l.layer, Kind: kind, Number: n})
			return err == nil
		}
	}
	for p := range l.m.pages() {
		words := l.m.bits[0][p*wordsPerPage : (p+1)*wordsPerPage]
		add := each(kvstore.KindBlock)
		eachBit(words, func(n uint64) bool { return add(p*bitsPerPage + n) })
		if err != nil {
			return err
		}
	}
	for level := range int(l.height) {
		if err := d.send(ctx); err != nil { // a level is gone before the one above
			return err
		}
		if eachBit(l.m.bits[level+1], each(kvstore.KindMap+kvstore.Kind(level))); err != nil {
			return err
		}
	}
	return d.send(ctx)
}

// addLeft adds what the local state of a crash knows: blocks that were written
// and not flushed, and keys that wait for their deletion.
func (d *removal) addLeft(m *presence) error {
	was, err := d.left.mapping(true)
	if err != nil {
		return err
	}
	for p := range was.pages() {
		if p >= uint64(len(m.bits[0])/wordsPerPage) {
			break
		}
		setBit(m.bits[1], p)
		for i := p * wordsPerPage; i < (p+1)*wordsPerPage; i++ {
			m.bits[0][i] |= atomic.LoadUint64(&was.bits[0][i]) | atomic.LoadUint64(&was.pending[i])
		}
	}
	return nil
}

func (d *removal) add(ctx context.Context, key kvstore.Key) error {
	d.ops = append(d.ops, kvstore.Op{Code: kvstore.Discard, Key: key, Count: 1, Fence: d.lease.Fence()})
	if len(d.ops) < removeBatch {
		return nil
	}
	return d.send(ctx)
}

func (d *removal) send(ctx context.Context) error {
	if len(d.ops) == 0 {
		return nil
	}
	batch := make([]*kvstore.Op, len(d.ops))
	for i := range d.ops {
		batch[i] = &d.ops[i]
	}
	for {
		d.ch.Do(ctx, batch)
		if !slices.ContainsFunc(d.ops, func(op kvstore.Op) bool { return errors.Is(op.Err, kvstore.ErrFenced) }) {
			break
		}
		// Renewed late. The same again: discarding twice is discarding.
		if err := d.lease.Wait(ctx); err != nil {
			return err
		}
	}
	for i := range d.ops {
		if err := d.ops[i].Err; err != nil {
			return err
		}
		if d.ops[i].Key.Kind == kvstore.KindBlock {
			d.done++
		}
	}
	d.ops = d.ops[:0]
	if d.progress != nil {
		d.progress(d.done, d.total)
	}
	return nil
}
