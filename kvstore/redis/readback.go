package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
)

// readBack compares what a node has with what channels remember, then lets the node
// be used. Who was ousted meanwhile had nothing to show, and is asked again once it
// has something.
func (n *node) readBack(ctx context.Context, r replication, era, doubts uint32) {
	h := &n.store.histories
	told := n.store.told.Load()
	if n.store.cfg.Mode == Cluster {
		n.store.lookNow(ctx) // what else is on the node now, beside what was asked for, and its guests
	}
	var lost, total int
	var first kvstore.Key
	err := errHearsay
	if n.store.mapped.Load() >= told {
		lost, total, first, err = n.compare(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.checking, n)
	h.why[n] = err
	if err != nil || n.era.Load() != era {
		return // the next connection begins it again
	}
	delete(h.why, n)
	h.of[n], h.stable[r.id], n.cleared = r.id, r.offset, doubts
	if lost == 0 {
		n.store.cfg.Log("redis %s may have another past than before; it has all of the last %d blocks that were written", n.addr, total)
		return
	}
	n.store.cfg.Log("warning: redis %s went back in time: of the last %d blocks that were written it lacks the newest content of %d, the first being %v; every flush fails from now on",
		n.addr, total, lost, first)
	srv := n.store.servers[n.server]
	srv.wentBack.CompareAndSwap(nil, &kvstore.OpError{Op: "flush", Server: n.addr,
		Err: fmt.Errorf("%w: it went back in time, %d blocks are older than what it acknowledged", kvstore.ErrServerLost, lost)})
}

// errHearsay: it is not known what else the node should have.
var errHearsay = errors.New("nobody tells the map of the cluster")

// readAtOnce is how many blocks' tags one pipeline asks for.
const readAtOnce = 512

// found is what a node has instead of what it should have.
type found struct {
	tag   uint64 // 0: nothing
	since int64  // when the change was sent that it should have
}

// compare asks a node for the tags of the blocks that it should have; of those of a guest
// it asks the slot's own node.
func (n *node) compare(ctx context.Context) (lost, total int, first kvstore.Key, err error) {
	want := n.store.remembered(n)
	keys := map[*node][][kvstore.KeySize]byte{}
	for k, w := range want {
		if !w.gone {
			at := n.asker(k[:])
			keys[at] = append(keys[at], k)
			total++
		}
	}
	other := map[[kvstore.KeySize]byte]found{}
	for at, all := range keys {
		for some := range slices.Chunk(all, readAtOnce) {
			if err := at.lookUp(ctx, some, want, other); err != nil {
				return 0, 0, first, err
			}
		}
	}
	if err := n.store.onTheWay(ctx, want, other); err != nil {
		return 0, 0, first, err
	}
	n.store.explain(other)
	for k := range other {
		if lost++; lost == 1 {
			first = kvstore.ParseKey(k[:])
		}
	}
	return lost, total, first, nil
}

// lookUp asks a node for the tags of blocks, and notes those that are other than wanted.
func (n *node) lookUp(ctx context.Context, keys [][kvstore.KeySize]byte, want map[[kvstore.KeySize]byte]*expected,
	other map[[kvstore.KeySize]byte]found) error {
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
		if err != nil && strings.HasPrefix(err.Error(), "WRONGTYPE") {
			text, err = "", nil // somebody else's: the block is not there
		}
		if err != nil {
			return err
		}
		tag := tagOf(text)
		if w := want[keys[i]]; !w.has(tag) {
			other[keys[i]] = found{tag, w.at}
		}
	}
	return nil
}

// onTheWay takes out what is with the node that a slot moved to, though the slot's own node does
// not lead there: its move was given up, and its keys are on their way back; or a replica took
// that node's place, which knows nothing of moves.
func (s *Store) onTheWay(ctx context.Context, want map[[kvstore.KeySize]byte]*expected, other map[[kvstore.KeySize]byte]found) error {
	if s.lodged.Load() == 0 {
		return nil
	}
	for k := range other {
		g := s.guests[keySlot(k[:])].Load()
		if g == nil {
			continue
		}
		text, err := g.node.askFor(ctx, k)
		var said goredis.Error
		if errors.As(err, &said) { // it serves the slot no more, or what is there is no block
			continue
		}
		if err != nil {
			return err
		}
		if tag := tagOf(text); tag != 0 && want[k].has(tag) {
			delete(other, k)
		}
	}
	return nil
}

// tagOf returns the tag of a block whose trailer was read; 0: there is none.
func tagOf(text string) uint64 {
	if len(text) != trailer {
		return 0
	}
	_, tag := readTrailer([]byte(text))
	return tag
}

// explain takes out what was changed since the remembered changes were collected: a slot
// that moves on meanwhile is written to elsewhere, and where a lease ended others may have
// written. What was found had been sent before it was found, so it is remembered by now.
func (s *Store) explain(other map[[kvstore.KeySize]byte]found) {
	if len(other) == 0 {
		return
	}
	for _, l := range s.ledgers() {
		l.mu.Lock()
		for i := range l.entries {
			e := &l.entries[i]
			if f, ok := other[e.key]; ok && e.state != entryNone && e.at >= f.since && (e.tag == f.tag || e.fence.Closed()) {
				delete(other, e.key)
			}
		}
		l.mu.Unlock()
	}
}

// ledgers returns those of all channels, and those that are kept.
func (s *Store) ledgers() []*ledger {
	s.histories.mu.Lock()
	defer s.histories.mu.Unlock()
	return slices.Collect(maps.Keys(s.histories.ledgers))
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
	return to.askFor(ctx, key)
}

// askFor asks for the trailer of a block of a slot that is on its way to the node.
func (n *node) askFor(ctx context.Context, key [kvstore.KeySize]byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*n.store.cfg.TryTimeout)
	defer cancel()
	var reply *goredis.StringCmd
	_, err := n.admin.Pipelined(ctx, func(p goredis.Pipeliner) error {
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

// remembered collects what all channels remember of blocks that are on a node now. What it
// has is looked at once, and first. If it were looked at for each write anew, a slot that moves
// meanwhile could have the older write of a block count and the newer one not. And what other
// nodes executed of these slots the ledgers know by now: it was sent before they moved.
func (s *Store) remembered(n *node) map[[kvstore.KeySize]byte]*expected {
	has := n.domain(true)
	all := s.ledgers()
	// What was changed before something that nobody remembers may have been changed by it.
	s.histories.mu.Lock()
	forgot := s.histories.forgot
	s.histories.mu.Unlock()
	want := map[[kvstore.KeySize]byte]*expected{}
	for _, l := range all {
		l.mu.Lock()
		for i := range l.entries {
			e := &l.entries[i]
			if e.state == entryNone || int(e.server) != n.server || !has.has(e.key[:]) {
				continue
			}
			w := want[e.key]
			if w == nil {
				w = &expected{}
				want[e.key] = w
			}
			w.add(e)
		}
		forgot = max(forgot, l.forgot)
		l.mu.Unlock()
	}
	for k, w := range want {
		if w.at <= forgot {
			delete(want, k)
		}
	}
	return want
}

// add takes an entry of any ledger, in any order.
func (e *expected) add(of *entry) {
	closed := of.fence.Closed() // others may have written since
	switch {
	case of.state == entrySent && !closed:
		e.open = append(e.open, unanswered{of.at, of.tag})
	case of.at >= e.at:
		e.at, e.tag, e.gone = of.at, of.tag, of.state == entryGone || closed
	}
}
