package redis

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
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

// ledgerStore is a store of one node that is nowhere.
func ledgerStore() (*Store, *node) {
	s := &Store{histories: histories{ledgers: map[*ledger]struct{}{}}}
	n := &node{store: s}
	s.nodes.Store(&[]*node{n})
	return s, n
}

// inLedger is how a block of the tests is called there.
func inLedger(n uint64) [kvstore.KeySize]byte {
	r := &request{}
	r.begin(write(n, kvstore.Any, nil), 1)
	return r.key
}

// TestForgottenWrite: the newest write of a block is not remembered any more, an older one of
// another worker is: the block need not hold that.
func TestForgottenWrite(t *testing.T) {
	s, n := ledgerStore()
	idle, busy := s.openLedger(), s.openLedger()
	sends(idle, n, write(1, kvstore.Any, block(1)), 5, 1)
	sends(busy, n, write(1, kvstore.Any, block(2)), 6, 2)
	if w := s.remembered(n)[inLedger(1)]; w == nil || w.tag != 6 {
		t.Fatalf("before: %+v", w)
	}
	for i := range int64(ledgerSize) {
		sends(busy, n, write(2, kvstore.Any, block(3)), 7, 3+i)
	}
	if w := s.remembered(n)[inLedger(1)]; w != nil {
		t.Errorf("the block should hold the older write: %+v", w)
	}
	if w := s.remembered(n)[inLedger(2)]; w == nil || w.tag != 7 {
		t.Errorf("what is newer than all that was forgotten: %+v", w)
	}
}

// TestForgottenChannel: so do channels that were closed long ago.
func TestForgottenChannel(t *testing.T) {
	s, n := ledgerStore()
	idle := s.openLedger()
	sends(idle, n, write(1, kvstore.Any, block(1)), 5, 1)
	for i := range int64(retired + 8) {
		l := s.openLedger()
		sends(l, n, write(1, kvstore.Any, block(2)), uint64(6+i), 2+i)
		s.closeLedger(l)
	}
	if w := s.remembered(n)[inLedger(1)]; w == nil || w.tag != 6+retired+7 {
		t.Errorf("the block should hold another write: %+v", w)
	}
}

// TestOldestChannelIsForgotten: of the channels that were closed the one is forgotten whose
// last write is the oldest, as all writes before that count no more.
func TestOldestChannelIsForgotten(t *testing.T) {
	s, n := ledgerStore()
	var all []*ledger
	for i := range int64(retired + 8) {
		l := s.openLedger()
		sends(l, n, write(uint64(i), kvstore.Any, block(1)), uint64(1+i), 1+i)
		all = append(all, l)
	}
	for i := range all { // from the middle
		s.closeLedger(all[(i+retired)%len(all)])
	}
	for i := range uint64(retired + 8) {
		if w := s.remembered(n)[inLedger(i)]; (w != nil) != (i >= 8) {
			t.Errorf("block %d: %+v", i, w)
		}
	}
}

// TestLeaseEndsUnderReadBack: others may have written what is found, also if the lease ended
// only when the remembered changes were collected already.
func TestLeaseEndsUnderReadBack(t *testing.T) {
	s, n := ledgerStore()
	l := s.openLedger()
	w := write(1, kvstore.Any, block(1))
	w.Fence = &kvstore.Fence{}
	w.Fence.OpenForEver()
	sends(l, n, w, 5, 5)
	for _, lost := range []bool{true, false} {
		other := map[[kvstore.KeySize]byte]found{inLedger(1): {tag: 8, since: 5}}
		if s.explain(other); (len(other) == 1) != lost {
			t.Errorf("with a lease that ended %v: lost %v", !lost, !lost)
		}
		w.Fence.Close()
	}
}

// TestWriteOfAnEndedLease: others may have written since, also over what was written before
// without a lease.
func TestWriteOfAnEndedLease(t *testing.T) {
	s, n := ledgerStore()
	l := s.openLedger()
	sends(l, n, write(1, kvstore.Any, block(1)), 5, 1)
	w := write(1, kvstore.Any, block(2))
	w.Fence = &kvstore.Fence{}
	w.Fence.OpenForEver()
	sends(l, n, w, 6, 2)
	w.Fence.Close()
	if w := s.remembered(n)[inLedger(1)]; w == nil || !w.gone {
		t.Errorf("the block should hold something: %+v", w)
	}
}

// TestWrittenMeanwhile: what was written since the remembered changes were collected is no
// loss, but what is older is one.
func TestWrittenMeanwhile(t *testing.T) {
	s, n := ledgerStore()
	l := s.openLedger()
	for tag := uint64(5); tag <= 7; tag++ {
		sends(l, n, write(1, kvstore.Any, block(1)), tag, int64(tag))
	}
	for tag, lost := range map[uint64]bool{5: true, 6: false, 7: false, 8: true, 0: true} {
		other := map[[kvstore.KeySize]byte]found{inLedger(1): {tag: tag, since: 6}}
		if s.explain(other); (len(other) == 1) != lost {
			t.Errorf("tag %d: lost %v", tag, !lost)
		}
	}
}

// TestMarkOfFewSlots: a node whose slots have no copy of the sentinel has a place for
// what flushes write all the same.
func TestMarkOfFewSlots(t *testing.T) {
	s := &Store{cfg: Config{Mode: Cluster}}
	n := &node{store: s}
	for _, slot := range []int{17, copyEvery * 5, slotCount - 1} {
		clear(s.slots[:])
		s.slots[slot].Store(n)
		if key, _ := n.markKey(); keySlot(key) != slot {
			t.Errorf("slot %d: %q is in slot %d", slot, key, keySlot(key))
		}
	}
	// As stores that are there have it.
	if key := copyKey("x", 1); key != "x{"+firstWord(copyEvery)+"}" {
		t.Errorf("the copy in slot 16 is under %q", key)
	}
}

// firstWord is the first word in a slot.
func firstWord(slot int) string {
	for i := int64(0); ; i++ {
		if w := strconv.FormatInt(i, 36); keySlot(w) == slot {
			return w
		}
	}
}

// TestForeignKeyIsAbsent: a key of another type where a block should be, which a read finds
// corrupt, counts as a block that is not there when a node is read back, be it the first or
// a later one that is asked for, and does not keep the node closed.
func TestForeignKeyIsAbsent(t *testing.T) {
	for name, foreign := range map[string][]uint64{"one of some": {3}, "all": {0, 1, 2, 3, 4, 5, 6, 7}} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			var book wiretest.Logbook
			s := open(t, Config{Log: book.Log}, server)
			ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
			defer cancel()
			ch := channelOf(t, s)
			for n := range uint64(8) {
				want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
			}
			for _, n := range foreign {
				server.Do("DEL", blockKey(key(n)))
				server.Do("RPUSH", blockKey(key(n)), "not a block")
			}
			server.Do("DEBUG", "CHANGE-REPL-ID")
			want(t, ch.Flush(ctx, testLayer), kvstore.ErrServerLost)
			if book.Count(fmt.Sprintf("of the last 8 blocks that were written it lacks the newest content of %d,", len(foreign))) != 1 {
				t.Errorf("log: %q", book.Lines())
			}
			w := write(foreign[0], kvstore.Any, block(100))
			ch.Do(ctx, []*kvstore.Op{w})
			want(t, w.Err, nil)
			wantBlock(t, ch, foreign[0], block(100))
		})
	}
}

// TestOustedUnderReadBack: a node that is ousted for a moment while it is read back, as by an
// old map, had nothing to show: it is not known by its new past.
func TestOustedUnderReadBack(t *testing.T) {
	c := redistest.Cluster(t, 1, 0)
	var book wiretest.Logbook
	s := openUnproven(t, Config{Mode: Cluster, Log: book.Log}, c.Servers[0].Addr())
	ch := channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	n := (*s.nodes.Load())[0]
	c.Servers[0].Do("DEL", blockKey(key(1)))
	c.Servers[0].Do("DEBUG", "CHANGE-REPL-ID")
	r := replication{role: "master", id: c.Servers[0].Info("replication", "master_replid")}
	other := &node{store: s, index: -1}
	s.mapping.Lock() // so that it is looked at later what the node has
	want(t, n.recognise(r, n.era.Load()), errChecking)
	for i := range s.slots {
		s.slots[i].Store(other)
	}
	n.ousted()
	s.mapping.Unlock()
	redistest.Eventually(t, "it was read back", func() bool {
		s.histories.mu.Lock()
		defer s.histories.mu.Unlock()
		return !s.histories.checking[n]
	})
	for i := range s.slots {
		s.slots[i].Store(n)
	}
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	want(t, n.recognise(r, n.era.Load()-1), nil) // it is known now
	r.id = "another"
	want(t, n.recognise(r, n.era.Load()-1), errOutdated)
	if book.Count("lacks the newest content of 1,") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestReadBackWithoutAMap: while nobody tells the map, who took over is not known by one
// slot that a MOVED told of: it may lack what is in the others.
func TestReadBackWithoutAMap(t *testing.T) {
	first, second := redistest.Cluster(t, 1, 0).Servers[0], redistest.Cluster(t, 1, 0).Servers[0]
	var book wiretest.Logbook
	s := openUnproven(t, Config{Mode: Cluster, Log: book.Log}, first.Addr())
	ch := channelOf(t, s)
	for n := range uint64(10) {
		want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
	}
	second.Do("SET", blockKey(key(1)), first.Do("GET", blockKey(key(1))))
	for _, server := range []*redistest.Server{first, second} {
		server.Do("ACL", "SETUSER", "default", "-cluster|nodes")
	}
	before := s.Rewinds()
	s.redirected((*s.nodes.Load())[0], fmt.Appendf(nil, "MOVED %d %s", keySlot(blockKey(key(1))), second.Addr()))
	r, done := read(1), make(chan struct{})
	go func() {
		ch.Do(bg(t), []*kvstore.Op{r})
		close(done)
	}()
	redistest.Eventually(t, "it was read back", func() bool {
		s.histories.mu.Lock()
		defer s.histories.mu.Unlock()
		return s.Rewinds() > before && len(s.histories.checking) == 0
	})
	redistest.Eventually(t, "it is said why", func() bool { return book.Count(errHearsay.Error()) > 0 })
	first.Stop()
	second.Do("ACL", "SETUSER", "default", "+cluster|nodes")
	<-done
	want(t, r.Err, nil)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	if book.Count("lacks the newest content of 9,") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}
