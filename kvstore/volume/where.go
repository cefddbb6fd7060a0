package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Where finds the block of a byte offset. It works on open and closed volumes.
func (s *Set) Where(ctx context.Context, name string, off int64) (Place, error) {
	rec, err := s.record(ctx, name)
	if err != nil {
		return Place{}, err
	}
	v := s.opened(name)
	if v != nil {
		rec.Size = v.Size()
	}
	if off < 0 || off >= rec.Size {
		return Place{}, ErrOutside
	}
	layer := rec.Layers[0]
	key := kvstore.Key{Layer: layer.ID, Number: uint64(off) / kvstore.BlockSize}
	seed := kvstore.Seed(layer.UUID)
	pl := Place{Key: key, Slot: s.pool.Slot(key), Location: s.store.Locate(key)}
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		op := kvstore.Op{Code: kvstore.Read, Key: key, Seed: seed, Data: make([]byte, kvstore.BlockSize)}
		ch.Do(ctx, []*kvstore.Op{&op})
		pl.Stored = op.Err == nil
		if pl.Stored {
			pl.CRC = kvstore.Checksum(seed, key, op.Data)
		} else if !errors.Is(op.Err, kvstore.ErrAbsent) {
			pl.Err = op.Err
		}
		switch {
		case s.prop.Presence:
			next, err := s.store.NextExtent(ctx, layer.ID, key.Number, true)
			pl.Present = err == nil && next == key.Number
			pl.Stored = pl.Stored && pl.Present
			if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
				return err
			}
		default:
			present, err := s.presentAt(ctx, ch, v, rec.MapHeight, layer.ID, seed, key.Number)
			if err != nil {
				return err
			}
			pl.Present = present
		}
		if pl.Present && errors.Is(op.Err, kvstore.ErrAbsent) {
			pl.Err = ErrLost
		}
		return nil
	})
	return pl, err
}

// presentAt looks a block up: in memory if the volume is open, else in the pages
// of the store, from the top down.
func (s *Set) presentAt(ctx context.Context, ch kvstore.Channel, v *Volume, height uint8,
	layer kvstore.LayerID, seed uint32, lba uint64,
) (bool, error) {
	if v != nil && v.use.enter() {
		defer v.use.leave()
		if m := v.m.Load(); m != nil {
			return m.present(lba), nil
		}
	}
	data := make([]byte, kvstore.BlockSize)
	for level := int(height) - 1; level >= 0; level-- {
		n := lba / pow(uint8(level)) // bit number in this level
		id := pageID{uint8(level), n / bitsPerPage}
		op := kvstore.Op{Code: kvstore.Read, Key: id.key(layer), Seed: seed, Data: data}
		ch.Do(ctx, []*kvstore.Op{&op})
		if errors.Is(op.Err, kvstore.ErrAbsent) || errors.Is(op.Err, kvstore.ErrCorrupt) {
			return true, nil // a page that is lost makes its range present, see loader
		}
		if op.Err != nil {
			return false, op.Err
		}
		if _, err := parsePage(data, layer, id); err != nil {
			return true, nil
		}
		if data[pageHeader+n%bitsPerPage/8]&(1<<(n%8)) == 0 {
			return false, nil
		}
	}
	return true, nil
}
