package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// SeekData returns the first offset at or after off that holds data, SeekHole
// the first in a hole (the end of the volume is one): ErrOutside as lseek(2)
// gives ENXIO.
func (v *Volume) SeekData(ctx context.Context, off int64) (int64, error) {
	return v.seek(ctx, off, true)
}

// SeekHole is described at SeekData.
func (v *Volume) SeekHole(ctx context.Context, off int64) (int64, error) {
	return v.seek(ctx, off, false)
}

func (v *Volume) seek(ctx context.Context, off int64, data bool) (int64, error) {
	if !v.use.enter() {
		return 0, kvstore.ErrClosed
	}
	defer v.use.leave()
	blocks := v.blocks.Load()
	if off < 0 || off >= int64(blocks)*kvstore.BlockSize {
		return 0, ErrOutside
	}
	lba := uint64(off) / kvstore.BlockSize
	found := blocks
	if m := v.m.Load(); m != nil {
		found = m.next(lba, blocks, data)
	} else {
		n, err := v.set.store.NextExtent(ctx, v.layer, lba, data)
		if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
			return 0, err
		}
		if err == nil {
			found = min(n, blocks)
		}
	}
	if err := v.mayBelieve(ctx); err != nil {
		return 0, err
	}
	if data && found == blocks {
		return 0, ErrOutside
	}
	return max(off, int64(found)*kvstore.BlockSize), nil
}
