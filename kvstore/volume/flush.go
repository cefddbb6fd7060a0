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
		if err := v.flushMap(ctx, ch, m); err != nil {
			return err
		}
	}
	err := v.flushStore(ctx, ch)
	if errors.Is(err, kvstore.ErrServerLost) {
		v.serverLost(err)
	}
	if err == nil && v.writable.Load() {
		// What another holder may have overwritten meanwhile is not stable.
		err = v.waitLease(ctx)
	}
	return err
}

// flushStore flushes the store. What was acknowledged before it was stored waits for
// the lease.
func (v *Volume) flushStore(ctx context.Context, ch kvstore.Channel) error {
	err := ch.Flush(ctx, v.layer)
	for errors.Is(err, kvstore.ErrFenced) && v.writable.Load() {
		if err = v.waitLease(ctx); err == nil {
			err = ch.Flush(ctx, v.layer)
		}
	}
	return err
}

// flushMap stores the pages of the map that changed.
func (v *Volume) flushMap(ctx context.Context, ch kvstore.Channel, m *presence) error {
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	return v.storeDirty(ctx, ch, m)
}

// serverLost makes every later flush of this volume fail: the kernel forgets a
// failed flush, but the data of the server that was emptied does not come back.
func (v *Volume) serverLost(err error) {
	if v.lostFlush.CompareAndSwap(nil, &err) {
		v.set.logf("volume %s: %v; every flush fails until the volume is opened anew", v.name, err)
	}
}

// FlushFails says why every flush of the volume fails until it is opened anew; nil:
// it does not.
func (v *Volume) FlushFails() error {
	if err := v.lostFlush.Load(); err != nil {
		return *err
	}
	return nil
}

// storeDirty stores the level 0 pages that changed. A page's flag goes before its
// copy is taken, so what changes later is stored later; a page that could not be
// stored, also because a panic came between, is dirty again. Of several errors it
// tells one that is not of a lost server: that page could still be stored. The caller
// holds v.gate.
func (v *Volume) storeDirty(ctx context.Context, ch kvstore.Channel, m *presence) error {
	var pages []pageStore
	generation := v.lease.Load().Generation()
	var failed error
	settle := func() {
		for i := range pages {
			p := &pages[i]
			if p.err != nil || p.next != pageDone {
				setBit(m.dirty, p.id.n)
				if failed == nil || p.err != nil && !errors.Is(p.err, kvstore.ErrServerLost) {
					failed = p.err
				}
			}
		}
		pages = pages[:0]
	}
	defer settle() // what a panic cut off is not stored
	send := func() {
		v.storePages(ctx, ch, pages)
		settle()
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
