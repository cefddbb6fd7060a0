package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	mu sync.Mutex // guards what follows; above ledger.mu and mapping, never held across I/O
	// stable is the offset that a flush found, by replication id.
	stable map[string]int64
	// forgot is when the newest change was sent that a dropped ledger remembered.
	forgot int64
	// of is the history that a node was last met with.
	of map[*node]string
	// checking are nodes that are being read back.
	checking map[*node]bool
	// why is what the last reading back of a node failed with.
	why     map[*node]error
	ledgers map[*ledger]struct{}
}

// errChecking: the node came back with another past, or is doubted; nobody uses it yet.
var errChecking = errors.New("it may have another past than before: reading back what was written last")

// recognise looks at the past of the node that a new connection met, which was dialled in
// an era.
func (n *node) recognise(r replication, era uint32) error {
	if r.role != "master" {
		return errReplica
	}
	h := &n.store.histories
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.checking[n] {
		return h.reason(n)
	}
	_, met := h.of[n]
	doubts := n.doubts.Load()
	doubted := doubts != n.cleared
	stable, known := h.stable[r.id]
	_, continues := h.stable[r.before]
	switch {
	case known && r.offset >= stable && !doubted:
		h.of[n] = r.id
		return nil
	case !met && !known && !continues && !doubted && !n.owes():
		// A node that is new to us, and has nothing of ours.
		if n.era.Load() != era {
			return errOutdated // it had another's place meanwhile
		}
		h.of[n], h.stable[r.id] = r.id, 0
		return nil
	}
	// Nothing is sent on any open connection from now on but what the ledgers know of.
	if !n.era.CompareAndSwap(era, era+1) {
		return errOutdated
	}
	h.checking[n] = true
	n.store.rewinds.Add(1)
	n.store.helpers.Go(func(ctx context.Context) { n.readBack(ctx, r, era+1, doubts) })
	return h.reason(n)
}

// reason says why nobody uses a node that is being read back. histories.mu is held.
func (h *histories) reason(n *node) error {
	if why := h.why[n]; why != nil {
		return fmt.Errorf("%w again, since the last time failed: %v", errChecking, why) // not what it is: it says nothing about this connection
	}
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
		// As long as the map is hearsay, anything counts.
		whole, has := !n.store.hearsay(), n.domain(false)
		for l := range h.ledgers {
			if l.owed(has, whole) {
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
