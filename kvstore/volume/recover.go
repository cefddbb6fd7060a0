package volume

import (
	"context"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// makeMap gives v the presence map for writing: the one that a crash left, which
// is stored whole before anything else is written, or the one of the store.
func (v *Volume) makeMap(ctx context.Context, sf *stateFile, rec pool.Volume, head stateHead, resumed bool) error {
	s := v.set
	if s.prop.Presence {
		if err := v.stillOurs(ctx); err != nil {
			return err
		}
		return sf.setHead(head, stateOpen) // the lock is all that is needed
	}
	m, err := sf.mapping(resumed)
	if err != nil {
		return err
	}
	v.state = sf
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		if resumed {
			return v.recover(ctx, ch, m, rec.MapHeight)
		}
		if err := sf.setHead(head, stateVoid); err != nil {
			return err
		}
		l := newLoader(rec)
		l.m, l.back = m, sf.back
		if err := l.load(ctx, ch); err != nil {
			return err
		}
		v.treeSeq, v.lostPages = l.topSeq, l.lost
		v.reportLostPages(ctx, l)
		if err := v.storeLostPages(ctx, ch, l); err != nil {
			return err
		}
		if err := v.stillOurs(ctx); err != nil {
			return err
		}
		return sf.setHead(head, stateOpen)
	})
	if err != nil {
		return err
	}
	v.m.Store(m)
	return nil
}

// recover goes on where a crashed daemon was: its map is in m. Every page is
// stored, with the generation that it had, because a page may have changed
// without its dirty flag being set yet, and because the store may have lost one
// meanwhile: above level 0 nothing would store it again, and the next open would
// take its whole range for lost.
func (v *Volume) recover(ctx context.Context, ch kvstore.Channel, m *presence, height uint8) error {
	m.recount()
	for p := range m.pages() {
		setBit(m.dirty, p)
	}
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	if err := v.storeDirty(ctx, ch, m); err != nil {
		return err
	}
	for level := uint8(1); level < height; level++ {
		var err error
		eachBit(m.bits[level+1], func(n uint64) bool {
			err = v.storeUpper(ctx, ch, m, pageID{level, n})
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	v.set.logf("volume %s: recovered from a crash: %d blocks, %d of them to be deleted", v.name, m.count.Load(), m.pend.Load())
	return nil
}

// reportLostPages says that pages of the map are gone.
func (v *Volume) reportLostPages(ctx context.Context, l *loader) {
	for _, id := range l.lost {
		key := id.key(l.layer)
		v.set.logf("volume %s: %s is lost on server %s: blocks of its range that are absent give errors",
			v.name, key, v.set.store.Locate(key).Server)
	}
	if len(l.lost) > 0 {
		v.markDamaged(ctx)
	}
}

// storeLostPages stores anew what was lost of the tree, so that the next open
// finds it: with all bits on.
func (v *Volume) storeLostPages(ctx context.Context, ch kvstore.Channel, l *loader) error {
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	for _, id := range l.lost {
		if id.level == 0 {
			setBit(l.m.dirty, id.n)
			continue
		}
		if err := v.storeUpper(ctx, ch, l.m, id); err != nil {
			return err
		}
	}
	return v.storeDirty(ctx, ch, l.m)
}

// storeUpper stores a page above level 0 as it is in memory. The caller holds v.gate.
func (v *Volume) storeUpper(ctx context.Context, ch kvstore.Channel, m *presence, id pageID) error {
	data := make([]byte, kvstore.BlockSize)
	ver := pageVersion{v.lease.Load().Generation(), v.nextSeq(m, id)}
	putPage(data, v.layer, id, ver, m.bits[id.level][id.n*wordsPerPage:(id.n+1)*wordsPerPage])
	return v.storeOne(ctx, ch, id, data, kvstore.Same)
}
