package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// flush makes everything that was acknowledged before stable: the pages of the
// map that changed, then what the store itself has to promise.
func (v *Volume) flush(ctx context.Context, ch kvstore.Channel) error {
	if err := v.lostFlush.Load(); err != nil {
		return *err
	}
	if m := v.m.Load(); m != nil && v.writable.Load() {
		if err := v.gate.lock(ctx); err != nil {
			return err
		}
		err := v.storeDirty(ctx, ch, m)
		v.gate.unlock()
		if err != nil {
			return err
		}
	}
	err := ch.Flush(ctx, v.layer)
	if errors.Is(err, kvstore.ErrServerLost) {
		v.serverLost(err)
	}
	return err
}

// serverLost makes every later flush of this volume fail: the kernel forgets a
// failed flush, but the data of the server that was emptied does not come back.
func (v *Volume) serverLost(err error) {
	if v.lostFlush.CompareAndSwap(nil, &err) {
		v.set.logf("volume %s: %v; every flush fails until the volume is opened anew", v.name, err)
	}
}

// storeDirty stores the level 0 pages that changed. A page's flag goes before its
// copy is taken, so what changes later is stored later; a page that could not be
// stored is dirty again. The caller holds v.gate.
func (v *Volume) storeDirty(ctx context.Context, ch kvstore.Channel, m *presence) error {
	var pages []pageStore
	generation := v.lease.Load().Generation()
	var failed error
	send := func() {
		v.storePages(ctx, ch, pages)
		for i := range pages {
			if pages[i].err != nil {
				setBit(m.dirty, pages[i].id.n)
				failed = pages[i].err
			}
		}
		pages = pages[:0]
	}
	eachBit(m.dirty, func(p uint64) bool {
		clearBit(m.dirty, p)
		pages = append(pages, pageStore{id: pageID{0, p}, data: make([]byte, kvstore.BlockSize)})
		m.copyPage(pages[len(pages)-1].data, v.layer, p, generation)
		if len(pages) == pageBatch {
			send()
		}
		// Pages on servers that are left are worth storing all the same.
		return failed == nil || errors.Is(failed, kvstore.ErrServerLost)
	})
	if len(pages) > 0 {
		send()
	}
	return failed
}
