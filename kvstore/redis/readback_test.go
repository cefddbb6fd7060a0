package redis

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// sends notes a change in a ledger, as if it had been sent at a time, and acknowledges it.
func sends(l *ledger, n *node, op *kvstore.Op, tag uint64, at int64) {
	r := &request{}
	r.begin(op, tag)
	r.node = n
	l.send(r, at)
	if op.Code == kvstore.Discard {
		l.done(r, entryGone)
	} else {
		l.done(r, entryDone)
	}
}

// TestMapMovesUnderReadBack: a slot gets to a node while what the node should have is
// collected, worker by worker: the older write of a block does not count without the newer
// one, which another worker has.
func TestMapMovesUnderReadBack(t *testing.T) {
	s := &Store{cfg: Config{Mode: Cluster}, histories: histories{ledgers: map[*ledger]struct{}{}}}
	from, to := &node{store: s}, &node{store: s}
	s.nodes.Store(&[]*node{from, to})
	old, recent := s.openLedger(), s.openLedger()
	w := write(1, kvstore.Any, block(1))
	sends(old, from, w, 5, 1)
	sends(recent, from, w, 6, 2)
	slot := &s.slots[keySlot(blockKey(key(1)))]
	for range 20 { // which of the two is looked at first is up to chance
		slot.Store(from)
		old.mu.Lock()
		recent.mu.Lock()
		got := make(chan map[[kvstore.KeySize]byte]*expected)
		go func() { got <- s.remembered(to) }()
		time.Sleep(5 * time.Millisecond)
		recent.mu.Unlock() // it is looked at, if it is the first one
		time.Sleep(5 * time.Millisecond)
		s.mapping.Lock()
		slot.Store(to)
		s.mapping.Unlock()
		old.mu.Unlock()
		for _, w := range <-got {
			if w.tag != 6 {
				t.Fatal("the older write counts, as if there were no newer one")
			}
		}
	}
}
