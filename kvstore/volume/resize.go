package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Resize changes a volume's size, open or not; shrinking needs allowShrink and a
// volume that is not open anywhere, and discards what lies beyond the new end
// before the size changes.
func (s *Set) Resize(ctx context.Context, name string, size int64, allowShrink bool) (err error) {
	if err := pool.CheckSize(size); err != nil {
		return err
	}
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := s.record(ctx, name)
	if err != nil {
		return err
	}
	open := s.opened(name) != nil
	fits := func(now int64) error {
		switch {
		case size < now && !allowShrink:
			return fmt.Errorf("%w: %s from %d to %d bytes", ErrShrink, name, now, size)
		case size < now && open:
			return fmt.Errorf("shrink volume %s: %w", name, ErrInUse)
		}
		return nil
	}
	// The record may be ahead of the open volume: an earlier try failed behind it.
	if v := s.opened(name); size == rec.Size && (v == nil || v.Size() == size) {
		return nil
	}
	if err := fits(rec.Size); err != nil {
		return err
	}
	// Somebody else may make it larger before the lease is ours.
	var refused error
	v, err := s.openLocked(ctx, name, true, func(rec pool.Volume) error {
		refused = fits(rec.Size)
		return refused
	})
	if refused != nil {
		return refused
	}
	if errors.Is(err, pool.ErrHeld) {
		return fmt.Errorf("resize volume %s: %w: %w", name, ErrInUse, err)
	}
	if err != nil {
		return err
	}
	// Also when who asked has hung up, or it would stay open, and nobody's.
	defer func() { err = errors.Join(err, v.closeLocked(context.WithoutCancel(ctx))) }()
	if err := fits(v.Size()); err != nil { // nobody asked, as a crash had left something
		return err
	}
	return s.withChannel(ctx, func(ch kvstore.Channel) error {
		if size < v.Size() {
			if err := v.dropBeyond(ctx, ch, blocksOf(size)); err != nil {
				return err
			}
		}
		return v.resize(ctx, ch, size)
	})
}

// resize changes the record, after what the greater map needs is stored, and then
// the size that requests see.
func (v *Volume) resize(ctx context.Context, ch kvstore.Channel, size int64) error {
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	height := v.height
	if m := v.m.Load(); m != nil {
		height = max(height, MapHeight(size))
		if err := v.growTree(ctx, ch, m, v.height, height); err != nil {
			return err
		}
	}
	_, err := v.set.pool.Update(ctx, v.name, func(r *pool.Volume) error {
		r.Size, r.MapHeight = size, height
		return nil
	})
	if err != nil {
		return err
	}
	v.height = height
	v.blocks.Store(blocksOf(size))
	return nil
}

// dropBeyond discards every block at or after first, for good: cleared, flushed
// and deleted. Nobody else has the volume.
func (v *Volume) dropBeyond(ctx context.Context, ch kvstore.Channel, first uint64) error {
	count := v.blocks.Load() - first
	m := v.m.Load()
	if m == nil {
		if err := v.discardExtent(ctx, ch, first, count); err != nil {
			return err
		}
		return v.flush(ctx, ch)
	}
	m.clear(first, count)
	if err := v.flush(ctx, ch); err != nil {
		return err
	}
	return v.drain(ctx, ch)
}
