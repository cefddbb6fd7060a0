package redis

import (
	"context"
	"fmt"
	"slices"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// A flush asks each node that was ever written to for one sequence, on one
// connection: GET of the sentinel; and if it must be confirmed, a write of the mark
// (a key that means nothing), then WAIT or WAITAOF; and at last how far the node's
// history is. WAIT and WAITAOF cover only writes of
// their own connection, and a node has one order of all writes: so what confirms
// the mark confirms all that was acknowledged before, on any connection.

// waitTime is how long a node waits for its replicas before it says how many there are
// so far, in milliseconds; then it is asked again.
const waitTime = 500

// flushPart is a command of a flush.
type flushPart uint8

const (
	flushProof  flushPart = iota
	flushAsking           // before the mark, where only guests are
	flushMark
	flushWait
	flushWaitAOF
	flushHistory
)

// flushParts are the commands of one flush, in order.
type flushParts struct {
	list  [6]flushPart
	count uint8
	// past is the node's history when the flush was sent, and stable how far that was:
	// other flushes may have found more before this one's reply is looked at.
	past   string
	stable int64
}

// flushKeys are the keys of a flush.
type flushKeys struct{ sentinel, mark string }

// flushParts returns the commands of a flush, and their keys.
func (n *node) flushParts() (parts flushParts, keys flushKeys) {
	add := func(on bool, p flushPart) {
		if on {
			parts.list[parts.count] = p
			parts.count++
		}
	}
	key, proof := n.sentinel()
	cfg := &n.store.cfg
	add(proof != nil, flushProof)
	mark, asking := n.markKey()
	marks := cfg.WaitReplicas > 0 || cfg.WaitAOF
	add(marks && asking, flushAsking)
	add(marks, flushMark)
	add(cfg.WaitReplicas > 0 && !cfg.WaitAOF, flushWait)
	add(cfg.WaitAOF, flushWaitAOF)
	add(true, flushHistory)
	parts.past, parts.stable = n.past()
	return parts, flushKeys{key, mark}
}

// markName is the key that flushes write.
const markName = "kvbfs:flush"

// appendFlush appends all commands of a flush.
func (n *node) appendFlush(b []byte, parts flushParts, keys flushKeys) []byte {
	cfg := &n.store.cfg
	script := storeScript
	for _, p := range parts.list[:parts.count] {
		switch p {
		case flushProof:
			b = appendCommand(b, "GET", keys.sentinel)
		case flushAsking:
			b, script = append(b, askingWords...), fleetingScript
		case flushMark:
			b = appendCommand(b, "EVAL", script, "1", keys.mark, "", "", "")
		case flushWait:
			b = append(b, command(3, "WAIT")...)
			b = appendInt(appendInt(b, cfg.WaitReplicas), waitTime)
		case flushWaitAOF:
			b = append(b, command(4, "WAITAOF", "1")...)
			b = appendInt(appendInt(b, cfg.WaitReplicas), waitTime)
		case flushHistory:
			b = appendCommand(b, "INFO", "replication")
		}
	}
	return b
}

// acceptFlush takes one reply of a flush.
func (r *request) acceptFlush(rep reply) (outcome, error, error) {
	part, count := r.parts.list[r.part], r.parts.count
	if rep.kind == replyError {
		r.node.passOver(rep.line)
		if classify(rep.line) == refuseMoved {
			r.node.store.lookAround() // the guest is over
		}
		return outMore, nil, &serverError{string(rep.line)} // all of it again
	}
	cfg := &r.node.store.cfg
	switch {
	case part == flushProof && rep.kind == replyNil:
		return r.unproven(count)
	case part == flushProof && rep.kind == replyBulk:
		// Not what the node would be asked now: it may have lost all slots with a copy.
		if !sentinelMatches(rep.data, r.node.store.servers[r.node.server].sentinelValue) {
			return r.unproven(count)
		}
	case part == flushAsking && rep.kind == replyStatus:
	case part == flushMark && rep.kind == replyInt && rep.n == 1:
	case part == flushWait && rep.kind == replyInt:
		r.short = rep.n < int64(cfg.WaitReplicas)
	case part == flushWaitAOF && rep.kind == replyInts:
		r.short = rep.ints[0] < 1 || rep.ints[1] < int64(cfg.WaitReplicas)
	case part == flushHistory && rep.kind == replyBulk:
		if err := r.node.continues(parseReplication(rep.data), r); err != nil {
			return outMore, nil, err // the next connection's greeting looks at it closely
		}
	default:
		return outDone, nil, errMalformed
	}
	if r.part++; r.part < count {
		return outMore, nil, nil
	}
	if r.short {
		return outLater, fmt.Errorf("it is not confirmed yet by the log and %d replicas, as --wait-aof and --wait-replicas ask", cfg.WaitReplicas), nil
	}
	return outDone, nil, nil
}

// unproven: the sentinel is gone. If replies are still to come the connection is of
// no use.
func (r *request) unproven(count uint8) (outcome, error, error) {
	if count > 1 {
		return outDone, kvstore.ErrServerLost, errSpent
	}
	return outDone, kvstore.ErrServerLost, nil
}

// Flush implements kvstore.Channel: all nodes that this store ever wrote to must
// still know their sentinel, and confirm what they were told. All layers are covered.
func (ch *channel) Flush(ctx context.Context, _ kvstore.LayerID) error {
	if ch.closed {
		return &kvstore.OpError{Op: "flush", Err: kvstore.ErrClosed}
	}
	if ctx.Err() != nil {
		return &kvstore.OpError{Op: "flush", Err: wire.ContextError(ctx)}
	}
	for ch.flushNodes(ctx) {
		if ctx.Err() != nil { // who serves now was not asked
			return &kvstore.OpError{Op: "flush", Err: wire.ContextError(ctx)}
		}
	}
	return ch.flushErr
}

// flushNodes asks the nodes that serve now. It returns true if another one must be
// asked: one of them ceased to serve meanwhile, or one began to.
func (ch *channel) flushNodes(ctx context.Context) (again bool) {
	nodes := *ch.store.nodes.Load()
	ch.reset(len(nodes))
	ch.flushErr, ch.unserved = nil, false
	for _, n := range nodes {
		srv := ch.store.servers[n.server]
		if !srv.written.Load() || !n.concerns() {
			continue
		}
		if err := srv.wentBack.Load(); err != nil {
			ch.flushErr = err
			continue
		}
		ch.requests = append(ch.requests, request{step: stepFlush, node: n})
		ch.pending++
		ch.queue(n, &ch.requests[len(ch.requests)-1])
	}
	ch.run(ctx, wire.Stays)
	for _, srv := range ch.store.servers { // it may have come out meanwhile
		if err := srv.wentBack.Load(); err != nil && ch.flushErr == nil {
			ch.flushErr = err
		}
	}
	return ch.flushErr == nil && (ch.unserved || ch.unasked())
}

// unasked says whether a node serves now that the flush did not ask: what an asked one
// had acknowledged may be there by now.
func (ch *channel) unasked() bool {
	for _, n := range *ch.store.nodes.Load() {
		asked := func(r request) bool { return r.node == n }
		if ch.store.servers[n.server].written.Load() && !slices.ContainsFunc(ch.requests, asked) && n.concerns() {
			return true
		}
	}
	return false
}
