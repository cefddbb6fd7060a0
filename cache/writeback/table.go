package writeback

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// layer has what is dirty of one volume.
type layer struct {
	store *Store
	id    kvstore.LayerID
	// seen: a flush succeeded, and nothing failed since, so writes may be deferred.
	seen atomic.Bool
	told atomic.Bool // that something failed
	// any is how many entries there are: while there are none reads pass by.
	any atomic.Int64
	// ctx ends with the layer: what is flying waits no longer for its server.
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	blocks  map[uint64]*entry // guarded by mu, as all below; the newest of each block
	queued  []list            // by server, in the order of their sequence
	flying  list
	seq     uint64        // of the newest entry
	changed chan struct{} // closed when an entry has landed; nil: nobody waits
	ended   bool
	count   counts
}

// entry is a dirty block. data never moves; it is written to while the entry is not
// flying, and read at any time, under layer.mu, or by who has it flying.
type entry struct {
	data   []byte
	layer  *layer
	number uint64
	server int
	seed   uint32
	fence  *kvstore.Fence

	seq    uint64 // of the write that made the block dirty: a flush asks for those up to one
	since  int64  // when that was
	flying bool
	older  *entry // the flying one of the same block: this one waits for it
	drop   bool   // flying, and discarded meanwhile: it ends when it lands
	absent bool   // the store lost the block: it is stored anew
	tries  int    // of one flight

	in         *list
	prev, next *entry
}

// list is a doubly linked list of entries.
type list struct{ first, last *entry }

func (l *list) push(e *entry) {
	e.in, e.prev, e.next = l, l.last, nil
	if l.last != nil {
		l.last.next = e
	} else {
		l.first = e
	}
	l.last = e
}

// insert puts an entry where its sequence belongs: near the front, as it is old.
func (l *list) insert(e *entry) {
	at := l.first
	for at != nil && at.seq < e.seq {
		at = at.next
	}
	if at == nil {
		l.push(e)
		return
	}
	e.in, e.prev, e.next = l, at.prev, at
	if at.prev != nil {
		at.prev.next = e
	} else {
		l.first = e
	}
	at.prev = e
}

func (e *entry) unlink() {
	l := e.in
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		l.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.last = e.prev
	}
	e.in, e.prev, e.next = nil, nil, nil
}

func newLayer(s *Store, id kvstore.LayerID) *layer {
	l := &layer{store: s, id: id, blocks: map[uint64]*entry{}, queued: make([]list, len(s.Servers()))}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// defers makes the block of a write dirty; false if there is no room, or the layer
// has ended. What is in fence has been looked at.
func (l *layer) defers(op *kvstore.Op) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	top := l.blocks[op.Key.Number]
	if l.ended || top != nil && top.flying && top.drop {
		l.count.through++
		return false
	}
	if top != nil && !top.flying {
		copy(top.data, op.Data)
		top.fence = op.Fence
		l.count.deferred++
		l.count.merged++
		return true
	}
	e := l.store.take()
	if e == nil {
		l.count.through++
		return false
	}
	l.seq++
	e.layer, e.number, e.seed, e.fence, e.seq, e.since = l, op.Key.Number, op.Seed, op.Fence, l.seq, l.store.now()
	e.server, e.older = l.store.place.Load().Server(op.Key), top
	copy(e.data, op.Data)
	l.blocks[e.number] = e
	l.any.Add(1)
	l.queued[e.server].push(e)
	l.count.deferred++
	l.store.drainers[e.server].wake(l.store.pressed())
	return true
}

// read copies a block if it is dirty.
func (l *layer) read(op *kvstore.Op) bool {
	if l.any.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.blocks[op.Key.Number]
	if e == nil {
		return false
	}
	copy(op.Data, e.data)
	return true
}

// dirty says whether a block is dirty.
func (l *layer) dirty(number uint64) bool {
	if l.any.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocks[number] != nil
}

// discard drops what is dirty of some blocks, and says whether one of them is flying:
// then the discard must not be sent yet.
func (l *layer) discard(first, count uint64) (flying bool) {
	if l.any.Load() == 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if count > uint64(len(l.blocks)) {
		for n, e := range l.blocks {
			if n-first < count {
				flying = l.dropOne(e) || flying
			}
		}
		return flying
	}
	for n := first; n < first+count; n++ {
		if e := l.blocks[n]; e != nil {
			flying = l.dropOne(e) || flying
		}
	}
	return flying
}

// dropOne drops the entry of a block, or marks it if it is flying. mu is held.
func (l *layer) dropOne(e *entry) (flying bool) {
	if !e.flying {
		older := e.older
		e.unlink()
		l.forget(e)
		if older == nil {
			return false
		}
		l.blocks[older.number] = older
		e = older
	}
	e.drop = true
	return true
}

// forget ends an entry that is in no list. mu is held.
func (l *layer) forget(e *entry) {
	if l.blocks[e.number] == e {
		delete(l.blocks, e.number)
	}
	l.any.Add(-1)
	l.store.give(e)
}

// launch moves up to n entries of a server's queue with a sequence up to seq, and
// older than before (unless it is 0), to those that are flying, and appends them to
// out.
func (l *layer) launch(server, n int, seq uint64, before int64, out []*entry) []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.queued[server].first; e != nil && e.seq <= seq && n > 0; {
		next := e.next
		if before != 0 && e.since > before {
			break
		}
		if e.older == nil {
			l.fly(e)
			out = append(out, e)
			n--
		}
		e = next
	}
	return out
}

// due says how long it takes until an entry of a server's queue has to be stored, if
// it has any. now: whatever its age.
func (l *layer) due(server int, now bool) (wait time.Duration, dirty bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.queued[server].first
	if e == nil {
		return 0, false
	}
	for ; e != nil; e = e.next {
		switch {
		case e.older != nil: // on somebody else's channel
		case now:
			return 0, true
		default:
			return l.store.cfg.MaxAge - time.Duration(l.store.now()-e.since), true
		}
	}
	return landingWait, true
}

// landingWait is how soon an entry is looked at again that waits for a flying one.
const landingWait = 10 * time.Millisecond

// fly marks a queued entry. mu is held.
func (l *layer) fly(e *entry) {
	e.unlink()
	e.flying, e.tries = true, 0
	l.flying.push(e)
}

// land ends the flight of an entry with the result of its store; again is true if it
// flies on, as what the store has of it is not as it was believed to be, and failed if
// it is still to be stored.
func (l *layer) land(e *entry, err error) (again, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.drop || err == nil {
		if err == nil {
			l.count.stored++
			if e.absent {
				l.count.healed++
			}
		}
		l.leave(e)
		l.forget(e)
		return false, errors.Is(err, kvstore.ErrServerLost) // what was discarded need not be stored
	}
	if e.tries++; e.tries <= maxTries && e.retry(err) {
		return true, false
	}
	l.count.failed++
	l.leave(e)
	// Whoever had it flying, it is the drainer's again, which may know of nothing dirty.
	defer l.store.drainers[e.server].wake(l.store.pressed())
	if top := l.blocks[e.number]; top != e {
		// What is newer is dirty in its place, and since when this one was.
		top.seq, top.since = e.seq, e.since
		top.unlink()
		l.queued[top.server].insert(top)
		l.forget(e)
		return false, true
	}
	l.queued[e.server].insert(e)
	return false, true
}

// leave takes an entry out of those that are flying, and lets go what waits for it.
// mu is held.
func (l *layer) leave(e *entry) {
	e.unlink()
	e.flying = false
	if top := l.blocks[e.number]; top != nil && top.older == e {
		top.older = nil
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// waiting returns what the next landing closes. mu is held.
func (l *layer) waiting() chan struct{} {
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// left says whether entries with a sequence up to seq are left to be launched, of
// servers that are not failing, and else what to wait for while some are flying; nil
// if none is.
func (l *layer) left(seq uint64, failing []error) (more bool, wait chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for server := range l.queued {
		if e := l.queued[server].first; failing[server] == nil && e != nil && e.seq <= seq && e.older == nil {
			return true, nil
		}
	}
	for e := l.flying.first; e != nil; e = e.next {
		if e.seq <= seq && failing[e.server] == nil {
			return false, l.waiting()
		}
	}
	return false, nil
}

// sequence is that of the newest entry.
func (l *layer) sequence() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// oldest says since when the oldest entry is dirty. mu is held.
func (l *layer) oldest() (since int64, ok bool) {
	look := func(e *entry) {
		if e != nil && (!ok || e.since < since) {
			since, ok = e.since, true
		}
	}
	for i := range l.queued {
		look(l.queued[i].first)
	}
	for e := l.flying.first; e != nil; e = e.next {
		look(e)
	}
	return since, ok
}

// end drops all entries and returns how many there were. It waits until none flies.
func (l *layer) end() (dropped int) {
	l.seen.Store(false)
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	for {
		for i := range l.queued {
			for e := l.queued[i].first; e != nil; e = l.queued[i].first {
				e.unlink()
				if e.older != nil {
					l.blocks[e.number] = e.older
				}
				l.forget(e)
				dropped++
			}
		}
		if l.flying.first == nil {
			break
		}
		wake := l.waiting()
		l.mu.Unlock()
		<-wake
		l.mu.Lock()
	}
	l.count.dropped += uint64(dropped)
	return dropped
}

// maxTries bounds how often a flight changes its mind about whether a block is there.
const maxTries = 8

// retry says whether an entry is to be sent again at once, as another expectation
// holds: a block that the store lost is stored anew, as a write of a whole block does.
func (e *entry) retry(err error) bool {
	switch {
	case !e.absent && errors.Is(err, kvstore.ErrAbsent):
		e.absent = true
	case e.absent && errors.Is(err, kvstore.ErrExists):
		e.absent = false
	default:
		return false
	}
	return true
}

// counts are those of Stats.
type counts struct{ deferred, merged, through, stored, failed, healed, dropped uint64 }

func (c *counts) add(o counts) {
	c.deferred += o.deferred
	c.merged += o.merged
	c.through += o.through
	c.stored += o.stored
	c.failed += o.failed
	c.healed += o.healed
	c.dropped += o.dropped
}
