package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// loader reads the presence map of a volume from its store.
type loader struct {
	layer  kvstore.LayerID
	seed   uint32
	blocks uint64
	height uint8
	back   func(page uint64) error // before a level 0 page is touched; may be nil
	mourn  bool                    // a server that was emptied is no error: its pages are lost

	m      *presence
	lost   []pageID // pages that exist and cannot be read
	topSeq uint64   // highest sequence seen above level 0
}

func newLoader(vol pool.Volume) *loader {
	l := vol.Layers[0]
	return &loader{
		layer: l.ID, seed: kvstore.Seed(l.UUID), blocks: blocksOf(vol.Size),
		height: max(vol.MapHeight, MapHeight(vol.Size)),
	}
}

// load fills m, top level first. A page that its parent names and the store does
// not have, or has in a state that cannot be read, was lost: its bits are all
// taken as present, so that its blocks are read and found, or not found and
// lost, but never holes.
func (l *loader) load(ctx context.Context, ch kvstore.Channel) error {
	for level := int(l.height); level <= maxLevels; level++ {
		setBit(l.m.bits[level], 0) // the top page exists, and nothing above it is used
	}
	for level := int(l.height) - 1; level >= 0; level-- {
		var ids []pageID
		var err error
		eachBit(l.m.bits[level+1], func(n uint64) bool {
			if ids = append(ids, pageID{uint8(level), n}); len(ids) == pageBatch {
				err, ids = l.readPages(ctx, ch, ids), ids[:0]
			}
			return err == nil
		})
		if err == nil && len(ids) > 0 {
			err = l.readPages(ctx, ch, ids)
		}
		if err != nil {
			return err
		}
	}
	l.m.recount()
	return nil
}

func (l *loader) readPages(ctx context.Context, ch kvstore.Channel, ids []pageID) error {
	ops := make([]kvstore.Op, len(ids))
	batch := make([]*kvstore.Op, len(ids))
	data := make([]byte, len(ids)*kvstore.BlockSize)
	for i, id := range ids {
		ops[i] = kvstore.Op{Code: kvstore.Read, Key: id.key(l.layer), Seed: l.seed,
			Data: data[i*kvstore.BlockSize : (i+1)*kvstore.BlockSize]}
		batch[i] = &ops[i]
	}
	ch.Do(ctx, batch)
	for i, id := range ids {
		if err := ops[i].Err; err != nil && !errors.Is(err, kvstore.ErrAbsent) && !errors.Is(err, kvstore.ErrCorrupt) &&
			!(l.mourn && errors.Is(err, kvstore.ErrServerLost)) {
			return err
		}
		if id.level == 0 && l.back != nil {
			if err := l.back(id.n); err != nil {
				return err
			}
		}
		page := ops[i].Data
		var ver pageVersion
		if ops[i].Err == nil {
			var err error
			if ver, err = parsePage(page, l.layer, id); err != nil {
				ops[i].Err = err
			}
		}
		if ops[i].Err != nil {
			l.lost = append(l.lost, id)
			page = nil
		}
		l.m.fill(id, page, bitsAt(l.blocks, int(id.level)))
		switch {
		case id.level > 0:
			l.topSeq = max(l.topSeq, ver.sequence)
		case l.m.seq != nil:
			l.m.seq[id.n] = ver.sequence
		}
	}
	return nil
}
