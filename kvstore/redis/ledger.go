package redis

import (
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// ledgerSize is how many of a channel's last writes are remembered: 1 MiB of memory
// for 128 MiB of data. A power of two, and far more than one batch.
const ledgerSize = 1 << 15

type entryState uint8

const (
	entryNone entryState = iota
	entrySent            // no answer yet: it may have been executed
	entryDone            // acknowledged
	entryGone            // a discard that was acknowledged
)

// entry is one remembered write or discard.
type entry struct {
	tag    uint64 // 0: a discard
	at     int64  // when it was sent, nanoseconds
	key    [kvstore.KeySize]byte
	server uint16
	state  entryState
	fence  *kvstore.Fence // closed: others may have written since
}

// ledger remembers the last writes of one channel.
type ledger struct {
	mu      sync.Mutex // a leaf; guards what follows. Contended only while a node is read back
	entries []entry    // a ring
	next    int
	closed  bool  // guarded by histories.mu
	forgot  int64 // when the newest change was sent that is not remembered any more
}

// openLedger makes a ledger that is read when a node comes back.
func (s *Store) openLedger() *ledger {
	l := &ledger{}
	s.histories.mu.Lock()
	defer s.histories.mu.Unlock()
	s.histories.ledgers[l] = struct{}{}
	return l
}

// retired is how many ledgers of closed channels are kept: what they remember was
// acknowledged too.
const retired = 16

// closeLedger keeps what a closed channel remembers, for a while.
func (s *Store) closeLedger(l *ledger) {
	s.histories.mu.Lock()
	defer s.histories.mu.Unlock()
	l.mu.Lock()
	empty := l.entries == nil
	l.mu.Unlock()
	l.closed = true
	if empty {
		delete(s.histories.ledgers, l)
		return
	}
	// What was changed before the newest that is forgotten counts no more: the one goes
	// that ended first.
	oldest, first, closed := l, l.newest(), 0
	for o := range s.histories.ledgers {
		if o.closed {
			closed++
			if at := o.newest(); at < first {
				oldest, first = o, at
			}
		}
	}
	if closed > retired {
		delete(s.histories.ledgers, oldest)
		s.histories.forgot = max(s.histories.forgot, first)
	}
}

// newest is when the newest change was sent.
func (l *ledger) newest() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[(l.next+ledgerSize-1)%ledgerSize].at
}

// epoch is when this process began, for times that compare.
var epoch = time.Now()

// send notes that a request is about to be sent, once.
func (l *ledger) send(r *request, at int64) {
	if r.entry != 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries == nil {
		l.entries = make([]entry, ledgerSize)
	}
	tag := r.tag
	if r.op.Code == kvstore.Discard {
		tag = 0 // as compare takes what is not there
	}
	l.forgot = max(l.forgot, l.entries[l.next].at)
	l.entries[l.next] = entry{tag: tag, at: at, key: r.key, server: uint16(r.node.server), state: entrySent, fence: r.op.Fence}
	l.next = (l.next + 1) % ledgerSize
	r.entry = l.next
	if l.next == 0 {
		r.entry = ledgerSize
	}
}

// owed says whether something that is remembered as acknowledged should be on a node of a
// cluster that has these slots; if they are not the whole, anything counts.
func (l *ledger) owed(has domain, whole bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		e := &l.entries[i]
		if e.state == entryDone && !e.fence.Closed() && (!whole || has.has(e.key[:])) {
			return true
		}
	}
	return false
}

// done notes how a request that was sent ended.
func (l *ledger) done(r *request, state entryState) {
	l.mu.Lock()
	l.entries[r.entry-1].state = state
	l.mu.Unlock()
}

// acknowledge notes that a change was answered with success on a connection. False: an
// answer of an older era is none, as who was read back meanwhile need not have the change.
// The mutex orders the two: who is read back either finds it acknowledged or had the era
// ended before.
func (l *ledger) acknowledge(r *request, c *conn) bool {
	state := entryDone
	if r.op.Code == kvstore.Discard {
		state = entryGone
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.outdated() {
		return false
	}
	l.entries[r.entry-1].state = state
	return true
}
