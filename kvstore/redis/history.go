package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A store that acknowledges and then goes back in time: a replica takes over that
// did not have the last writes yet, or a server comes back from an old snapshot or
// the cut end of its log. Two things find that.
//
// A node tells by which history of changes it lives (replication id) and how far
// that is (offset). Each connection's greeting asks, and each flush: connections may
// stay open while a node becomes a replica and a master again. While both go on, nothing
// went back. A replica that takes over names the history that it continues, and from
// where.
//
// What else is sent on a connection looks at the era of its node only, and so does a change
// when it is answered. A new one begins when another node has taken over, as it may be back
// when the connection is used next, and when the node has to show something. A connection
// of an older era is greeted anew, and what is unanswered on it is sent again.
//
// Where the history is another one, or shorter than a flush found it, the node has to
// show what we remember: each channel keeps the tags of its last writes (ledger).
// Until they were read back nobody uses the node. If one is missing or older, all
// later flushes fail.
//
// Rewinds grows when a node has to show something, before it is used again, and when
// another node has taken over, after the last request was sent to the old one: what is
// read from a master that does not know yet that it was replaced may be of before.

// histories is what a store knows of its nodes' pasts.
type histories struct {
	mu sync.Mutex // guards what follows; above ledger.mu, never held across I/O
	// stable is the offset that a flush found, by replication id.
	stable map[string]int64
	// of is the history that a node was last met with.
	of map[*node]string
	// checking are nodes that are being read back.
	checking map[*node]bool
	ledgers  map[*ledger]struct{}
}

// errChecking: the node came back with another past; nobody uses it yet.
var errChecking = errors.New("it has another past than before: reading back what was written last")

// recognise looks at the past of the node that a new connection met.
func (n *node) recognise(r replication) error {
	if r.role != "master" {
		return errReplica
	}
	h := &n.store.histories
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checking[n] {
		return errChecking
	}
	_, met := h.of[n]
	stable, known := h.stable[r.id]
	_, continues := h.stable[r.before]
	switch {
	case known && r.offset >= stable:
		h.of[n] = r.id
		return nil
	case !met && !known && !continues && !n.owes():
		// A node that is new to us, and has nothing of ours.
		h.of[n], h.stable[r.id] = r.id, 0
		return nil
	}
	h.checking[n] = true
	// Nothing is sent on any open connection from now on but what the ledgers know of.
	n.era.Add(1)
	n.store.rewinds.Add(1)
	n.store.helpers.Go(func(ctx context.Context) { n.readBack(ctx, r) })
	return errChecking
}

// ousted notes that another node has taken this one's place.
func (n *node) ousted() {
	n.era.Add(1)
	n.store.rewinds.Add(1)
}

// errOutdated: the node may have become a replica and a master again, or is being read back.
var errOutdated = errors.New("it may have another past than when this connection met it")

// outdated says whether the connection must be greeted anew.
func (c *conn) outdated() bool { return c.era != c.node.era.Load() }

// owes says whether a node that is new to us should have something that we remember.
// histories.mu is held.
func (n *node) owes() bool {
	h := &n.store.histories
	switch n.store.cfg.Mode {
	case Sentinel:
		return len(h.of) > 0
	case Cluster:
		for l := range h.ledgers {
			if l.owed(n) {
				return true
			}
		}
	}
	return false
}

// errPast: the node went on with another past while its connections stayed open, as
// after a failover there and back, or when a master's first replica came.
var errPast = errors.New("it has another past than when this connection met it")

// past returns the history that the node was last met with, and how far it is stable.
func (n *node) past() (id string, stable int64) {
	h := &n.store.histories
	h.mu.Lock()
	defer h.mu.Unlock()
	id = h.of[n]
	return id, h.stable[id]
}

// continues looks whether the node still has the past that it was met with. If the
// flush is confirmed it remembers how far that is.
func (n *node) continues(r replication, flush *request) error {
	if r.role != "master" {
		return errReplica
	}
	h := &n.store.histories
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of[n] != r.id || flush.parts.past == r.id && r.offset < flush.parts.stable {
		return errPast
	}
	if !flush.short && r.offset > h.stable[r.id] {
		h.stable[r.id] = r.offset
	}
	return nil
}

// readBack compares what a node has with what channels remember, then lets the node
// be used.
func (n *node) readBack(ctx context.Context, r replication) {
	if n.store.hearsay() {
		n.store.lookNow(ctx) // what else is on the node now, beside what was asked for
	}
	// Whose place this node has may not be told yet, as the map changes first.
	for _, m := range *n.store.nodes.Load() {
		if m != n && m.server == n.server && !m.serves() {
			m.era.Add(1)
		}
	}
	h := &n.store.histories
	lost, total, first, err := n.compare(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.checking, n)
	if err != nil {
		return // the next connection begins it again
	}
	h.of[n], h.stable[r.id] = r.id, r.offset
	if lost == 0 {
		n.store.cfg.Log("redis %s has another past than before; it has all of the last %d blocks that were written", n.addr, total)
		return
	}
	n.store.cfg.Log("warning: redis %s went back in time: of the last %d blocks that were written it lacks the newest content of %d, the first being %v; every flush fails from now on",
		n.addr, total, lost, first)
	srv := n.store.servers[n.server]
	srv.wentBack.CompareAndSwap(nil, &kvstore.OpError{Op: "flush", Server: n.addr,
		Err: fmt.Errorf("%w: it went back in time, %d blocks are older than what it acknowledged", kvstore.ErrServerLost, lost)})
}

// readAtOnce is how many blocks' tags one pipeline asks for.
const readAtOnce = 512

// compare asks a node for the tags of the blocks that it should have.
func (n *node) compare(ctx context.Context) (lost, total int, first kvstore.Key, err error) {
	want := n.store.remembered(n)
	keys := make([][kvstore.KeySize]byte, 0, readAtOnce)
	flush := func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*n.store.cfg.TryTimeout)
		defer cancel()
		replies, err := n.admin.Pipelined(ctx, func(p goredis.Pipeliner) error {
			for _, k := range keys {
				p.GetRange(ctx, string(k[:]), kvstore.BlockSize, valueSize-1)
			}
			return nil
		})
		var said goredis.Error
		if err != nil && !errors.As(err, &said) { // else it is the first one that is refused
			return err
		}
		for i, reply := range replies {
			text, err := reply.(*goredis.StringCmd).Result()
			if err != nil {
				text, err = n.elsewhere(ctx, keys[i], err)
			}
			if err != nil {
				return err
			}
			tag := uint64(0)
			if len(text) == trailer {
				_, tag = readTrailer([]byte(text))
			}
			if !want[keys[i]].has(tag) {
				if lost++; lost == 1 {
					first = kvstore.ParseKey(keys[i][:])
				}
			}
		}
		keys = keys[:0]
		return nil
	}
	for k, w := range want {
		if w.gone {
			continue
		}
		total++
		if keys = append(keys, k); len(keys) == readAtOnce {
			if err := flush(); err != nil {
				return 0, 0, first, err
			}
		}
	}
	if len(keys) > 0 {
		err = flush()
	}
	return lost, total, first, err
}

// elsewhere follows the ASK that a node answered instead of a block's tag: the block is on
// the way to another node, which may take long, or stay like that.
func (n *node) elsewhere(ctx context.Context, key [kvstore.KeySize]byte, why error) (string, error) {
	var said goredis.Error
	if !errors.As(why, &said) {
		return "", why
	}
	to, asking := n.store.redirected(n, []byte(said.Error()))
	if !asking {
		return "", why
	}
	var reply *goredis.StringCmd
	_, err := to.admin.Pipelined(ctx, func(p goredis.Pipeliner) error {
		p.Do(ctx, "ASKING")
		reply = p.GetRange(ctx, string(key[:]), kvstore.BlockSize, valueSize-1)
		return nil
	})
	if err != nil {
		return "", err
	}
	return reply.Result()
}

// expected is what a block may hold.
type expected struct {
	at   int64  // when what was acknowledged last was sent
	tag  uint64 // of that; 0: nothing is remembered
	gone bool   // it was discarded: anything may be there
	open []unanswered
}

// unanswered is a change that may have been executed, or not.
type unanswered struct {
	at  int64
	tag uint64
}

func (e *expected) has(tag uint64) bool {
	if e.tag == 0 || tag == e.tag { // nothing acknowledged is remembered
		return true
	}
	for _, o := range e.open {
		// What was sent before something that was acknowledged was over by then.
		if o.tag == tag && o.at >= e.at {
			return true
		}
	}
	return false
}

// remembered collects what all channels remember of blocks that are on a node now.
func (s *Store) remembered(n *node) map[[kvstore.KeySize]byte]*expected {
	s.histories.mu.Lock()
	var all []*ledger
	for l := range s.histories.ledgers {
		all = append(all, l)
	}
	s.histories.mu.Unlock()
	want := map[[kvstore.KeySize]byte]*expected{}
	for _, l := range all {
		l.mu.Lock()
		for i := range l.entries {
			e := &l.entries[i]
			if e.state == entryNone || e.fence.Closed() || int(e.server) != n.server || s.route(e.key[:], n.server) != n {
				continue
			}
			w := want[e.key]
			if w == nil {
				w = &expected{}
				want[e.key] = w
			}
			switch {
			case e.state == entrySent:
				w.open = append(w.open, unanswered{e.at, e.tag})
			case e.at >= w.at:
				w.at, w.tag, w.gone = e.at, e.tag, e.state == entryGone
			}
		}
		l.mu.Unlock()
	}
	return want
}

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
	mu      sync.Mutex // a leaf; guards all. Contended only while a node is read back
	entries []entry    // a ring
	next    int
	closed  bool
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
	l.closed = true
	l.mu.Unlock()
	if empty {
		delete(s.histories.ledgers, l)
		return
	}
	closed := 0
	for o := range s.histories.ledgers {
		o.mu.Lock()
		if o.closed {
			closed++
		}
		drop := o.closed && closed > retired && o != l
		o.mu.Unlock()
		if drop {
			delete(s.histories.ledgers, o)
		}
	}
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
	l.entries[l.next] = entry{tag: tag, at: at, key: r.key, server: uint16(r.node.server), state: entrySent, fence: r.op.Fence}
	l.next = (l.next + 1) % ledgerSize
	r.entry = l.next
	if l.next == 0 {
		r.entry = ledgerSize
	}
}

// owed says whether a node should have something that is remembered as acknowledged; as
// long as the map is hearsay, anything counts.
func (l *ledger) owed(n *node) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	whole := !n.store.hearsay()
	for i := range l.entries {
		e := &l.entries[i]
		if e.state == entryDone && !e.fence.Closed() && (!whole || n.store.route(e.key[:], n.server) == n) {
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
