package cache

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// layer is what is known of a layer. Blocks of an earlier epoch are not served.
type layer struct {
	epoch atomic.Uint32
	// changing is how many discards of more blocks than are looked at one by one
	// are under way: while there are some nothing of the layer is filled.
	changing atomic.Int32
	gone     atomic.Bool // removed: not cached any more
}

// layers finds the layer of an id: reading takes no lock.
type layers struct {
	mu  sync.Mutex // of those who change it
	all atomic.Pointer[map[kvstore.LayerID]*layer]
}

// get returns nil for a layer that was never begun.
func (ls *layers) get(id kvstore.LayerID) *layer {
	if all := ls.all.Load(); all != nil {
		return (*all)[id]
	}
	return nil
}

// begin makes a layer known, or forgets what was cached of it.
func (ls *layers) begin(id kvstore.LayerID) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.get(id); l != nil {
		l.epoch.Add(1)
		return
	}
	ls.change(func(all map[kvstore.LayerID]*layer) { all[id] = new(layer) })
}

// end forgets a layer for good.
func (ls *layers) end(id kvstore.LayerID) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.get(id)
	if l == nil {
		return
	}
	l.gone.Store(true)
	l.epoch.Add(1)
	ls.change(func(all map[kvstore.LayerID]*layer) { delete(all, id) })
}

// dropAll forgets all that is cached.
func (ls *layers) dropAll() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if all := ls.all.Load(); all != nil {
		for _, l := range *all {
			l.epoch.Add(1)
		}
	}
}

// change replaces the map by a changed copy. mu is held.
func (ls *layers) change(f func(map[kvstore.LayerID]*layer)) {
	next := map[kvstore.LayerID]*layer{}
	if all := ls.all.Load(); all != nil {
		maps.Copy(next, *all)
	}
	f(next)
	ls.all.Store(&next)
}
