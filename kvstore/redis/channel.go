package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/awake"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// channel is one worker's connections to all nodes.
type channel struct {
	store *Store
	place kvstore.Placement
	// conns of node i are conns[i*per : (i+1)*per]. They are made when the node is
	// first met, and dialled when first used.
	conns []*conn
	per   int
	turn  []int  // per node: which connection takes the next run of requests
	tag   uint64 // of the last write
	log   *ledger

	requests []request
	pending  int // requests without a result
	flushErr error
	unserved bool // a node ceased to serve while it was asked to flush
	closed   bool

	active []*conn
	fds    []unix.PollFd
	awake  awake.Wait
}

var _ kvstore.Channel = (*channel)(nil)

func newChannel(s *Store, p kvstore.Placement) *channel {
	ch := &channel{
		store: s, place: p, per: s.cfg.Connections, tag: rand.Uint64(), log: s.openLedger(),
		requests: make([]request, 0, 64),
	}
	for _, n := range *s.nodes.Load() {
		ch.meet(n)
	}
	return ch
}

// meet makes the connections to a node, and to all that were found before it.
func (ch *channel) meet(n *node) {
	for len(ch.turn) <= n.index {
		m := (*ch.store.nodes.Load())[len(ch.turn)]
		for range ch.per {
			ch.conns = append(ch.conns, &conn{ch: ch, node: m, fd: -1})
		}
		ch.turn = append(ch.turn, 0)
	}
}

// Do implements kvstore.Channel.
func (ch *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if ch.begin(ctx, ops) {
		ch.run(ctx, wire.Stays)
		ch.settleNodes()
	}
}

// Try implements kvstore.Channel.
func (ch *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	until := wire.Leaves
	if len(ops) == 0 && ch.pending > 0 {
		until = wire.Looks
	} else if !ch.begin(ctx, ops) {
		return true
	}
	if !ch.run(ctx, until) {
		return false
	}
	ch.settleNodes()
	return true
}

// Finish implements kvstore.Channel.
func (ch *channel) Finish(ctx context.Context) {
	ch.run(ctx, wire.Stays)
	ch.settleNodes()
}

// begin queues the operations; false if there is nothing to do.
func (ch *channel) begin(ctx context.Context, ops []*kvstore.Op) bool {
	if wire.Refuse(ctx, ch.closed, ops) {
		return false
	}
	ch.reset(len(ops))
	// Writes first: a server that answers reads into a full socket would stop
	// reading our writes. (Sends do not block here, so this is for speed: the
	// server never has to wait for us.)
	for _, op := range ops {
		if op.Code == kvstore.Write {
			ch.enter(op)
		}
	}
	for _, op := range ops {
		if op.Code != kvstore.Write {
			ch.enter(op)
		}
	}
	return true
}

// reset makes room for n requests; they must not move while run holds pointers.
func (ch *channel) reset(n int) {
	if cap(ch.requests) < n {
		ch.requests = make([]request, 0, max(n, 2*cap(ch.requests)))
	}
	ch.requests = ch.requests[:0]
	for _, c := range ch.active {
		c.listed = false
	}
	ch.active = ch.active[:0]
}

// enter checks an operation and queues it on a connection of its node.
func (ch *channel) enter(op *kvstore.Op) {
	op.Err = kvstore.ErrPending // until it has a result, which is never taken for success
	if err := wire.Check(op); err != nil {
		op.Err = wire.OpError(op, "", err)
		return
	}
	number := ch.place.Server(op.Key)
	if number < 0 || number >= len(ch.store.servers) {
		op.Err = wire.OpError(op, "", fmt.Errorf("%w: placed on server %d of %d", kvstore.ErrInvalid, number, len(ch.store.servers)))
		return
	}
	ch.requests = ch.requests[:len(ch.requests)+1]
	r := &ch.requests[len(ch.requests)-1]
	ch.tag++
	r.begin(op, ch.tag)
	ch.pending++
	ch.queue(ch.store.route(r.key[:], number), r)
}

// queue gives a request to a connection of a node.
func (ch *channel) queue(n *node, r *request) {
	if n.index >= len(ch.turn) {
		ch.meet(n)
	}
	r.node = n
	c := ch.conns[n.index*ch.per]
	if ch.per > 1 {
		c = ch.spread(n.index)
	}
	if c.in == nil {
		c.in = make([]byte, bufferSize)
		c.scratch = make([]byte, 0, scratchSize)
		c.vectors = make([]unix.Iovec, 0, maxVectors)
		c.scatter.iov = make([]unix.Iovec, 0, 2*maxScattered+2)
	}
	c.queue.Push(r)
	if !c.listed {
		c.listed = true
		ch.active = append(ch.active, c)
	}
}

// spread gives each connection of a node a run of requests at a time: short
// runs would turn one system call into several.
func (ch *channel) spread(index int) *conn {
	const run = 16
	t := ch.turn[index]
	ch.turn[index] = (t + 1) % (run * ch.per)
	return ch.conns[index*ch.per+t/run]
}

// maxHops is how often a request follows MOVED and ASK without a pause: more than a
// cluster at rest ever needs. While its nodes do not agree who has a slot each may name
// the other, which would be a tight loop.
const maxHops = 5

// redirect follows MOVED or ASK to another node.
func (ch *channel) redirect(c *conn, r *request, line []byte) {
	n, asking := ch.store.redirected(c.node, line)
	if asking && !ch.store.lodge(keySlot(r.key[:]), c.node, n) {
		n, asking = c.node, false
	}
	r.asking, r.part = asking, 0
	if r.hops++; n == c.node || r.hops > maxHops { // it said nothing that leads anywhere
		r.hops = 0
		c.rest(&c.node.outage, &serverError{string(line)})
	}
	ch.queue(n, r)
}

// failAll ends everything that is queued or in flight on a connection.
func (c *conn) failAll(err error) {
	for c.flight.Len() > 0 {
		c.ch.complete(c.flight.Pop(), err)
	}
	for c.queue.Len() > 0 {
		c.ch.complete(c.queue.Pop(), err)
	}
}

// complete gives a request its result.
func (ch *channel) complete(r *request, err error) {
	ch.pending--
	if r.op == nil {
		if err != nil && !errors.Is(ch.flushErr, kvstore.ErrServerLost) {
			ch.flushErr = &kvstore.OpError{Op: "flush", Server: r.node.addr, Err: err}
		}
		return
	}
	if err != nil {
		r.op.Err = wire.OpError(r.op, r.node.addr, err)
		if r.entry != 0 && isRefusal(err) {
			ch.log.done(r, entryNone)
		}
		return
	}
	r.op.Err = nil
	if r.op.Code == kvstore.Read {
		return
	}
	// Before anybody learns of it: the next flush, of whatever channel, asks its nodes.
	if written := &ch.store.servers[r.node.server].written; !written.Load() {
		written.Store(true)
	}
	if r.node.spare.Load() != 0 && (r.step == stepDelete || r.step == stepSet || r.step == stepAdd) {
		r.node.spare.Store(0) // it has room again
	}
}

// isRefusal says whether an error means that nothing was changed.
func isRefusal(err error) bool {
	return errors.Is(err, kvstore.ErrAbsent) || errors.Is(err, kvstore.ErrExists) || errors.Is(err, kvstore.ErrConflict) || errors.Is(err, kvstore.ErrFull)
}

// settleNodes ends a batch: nothing keeps pointing into the callers' buffers.
func (ch *channel) settleNodes() {
	for _, c := range ch.active {
		if len(c.unsent) > 0 || c.state == ready && c.link.unsent() {
			// A server that answered before it had read everything.
			c.disconnect(false)
		}
	}
}

// Close implements kvstore.Channel.
func (ch *channel) Close() error {
	if ch.pending > 0 {
		// A panic cut Do off. What was sent of changes may still be executed.
		ch.active = append(ch.active[:0], ch.conns...)
		ch.abandon(kvstore.ErrPanic)
	}
	for _, c := range ch.conns {
		c.disconnect(false)
	}
	ch.closed = true
	ch.store.closeLedger(ch.log)
	return nil
}

// run drives all connections until every request has its result or ctx ends, or as
// until says.
func (ch *channel) run(ctx context.Context, until wire.Until) bool {
	working := until != wire.Looks // until the channel waits for what may take long
	if working {
		awake.Begin()
	}
	defer func() {
		if working {
			awake.End()
		}
	}()
	patient := until != wire.Looks // until a server stays silent for GraceMin
	var now time.Time
	for ch.pending > 0 {
		for i := 0; i < len(ch.active); i++ { // it may grow meanwhile
			c := ch.active[i]
			if c.pending() && !c.quiet() {
				if c.state == closed && now.IsZero() {
					now = time.Now()
				}
				c.advance(now)
			}
		}
		if ch.pending == 0 {
			break
		}
		if c := ch.onlyWaiting(); c != nil && patient {
			patient = ch.await(c)
			if patient {
				continue
			}
		} else {
			ch.poll(ctx, until)
		}
		if working {
			awake.End()
			working = false
		}
		now = time.Now()
		if ctx.Err() != nil {
			ch.abandon(wire.ContextError(ctx))
			return true
		}
		for _, c := range ch.active {
			c.tick(now)
		}
		if ch.pending > 0 && ch.silent(now) && until != wire.Stays {
			return false
		}
	}
	return true
}

// await receives from c, which is all that there is to wait for. The answer to a
// single request it awaits without sleeping, if that pays: with more of them the
// CPUs have other work, and through TLS each look costs too much.
func (ch *channel) await(c *conn) bool {
	if _, cheap := c.link.(*plain); len(ch.requests) > 1 || !cheap {
		return c.receive(true)
	}
	return ch.awake.Answer(c.receive)
}

// silent notes which nodes have been silent for longer than their grace, and says
// whether all that is pending waits for such nodes.
func (ch *channel) silent(now time.Time) bool {
	all := true
	for _, c := range ch.active {
		if !c.pending() {
			continue
		}
		since := c.idle
		switch {
		case c.state == closed:
			since = c.troubled
		case c.flight.Len() == 0 && !c.restUntil.IsZero():
			since = c.restSince // it answers, but not to this
		}
		// What is held waits for a proof that may take long.
		held := c.flight.Len() == 0 && c.held()
		if !held && (since.IsZero() || now.Sub(since) < c.node.silence.Grace()) {
			all = false
			continue
		}
		c.node.silence.Fall()
		c.slow = true
	}
	return all
}

// onlyWaiting returns a connection to wait on if nothing is left to be sent
// anywhere: then waiting for one server after the other takes as long as waiting
// for all, and saves a poll for each receive.
func (ch *channel) onlyWaiting() (first *conn) {
	for _, c := range ch.active {
		if !c.pending() {
			continue
		}
		if !c.quiet() {
			return nil
		}
		if first == nil {
			first = c
		}
	}
	return first
}

// poll waits until a connection can go on, a dial is due, or a slice is over.
func (ch *channel) poll(ctx context.Context, until wire.Until) {
	wait := slice
	if until == wire.Leaves {
		wait = wire.GraceMin
	}
	now := time.Now()
	ch.fds = ch.fds[:0]
	for _, c := range ch.active {
		fd, limit := c.waitsFor(now)
		wait = min(wait, limit)
		ch.fds = append(ch.fds, fd)
	}
	if t, ok := ctx.Deadline(); ok {
		wait = min(wait, max(t.Sub(now), 0))
	}
	// Rounded up, or the last millisecond before a dial would be a busy loop.
	n, err := unix.Poll(ch.fds, int((wait+time.Millisecond-1)/time.Millisecond))
	if err != nil {
		return
	}
	for i := range ch.fds { // active may grow meanwhile
		c := ch.active[i]
		came := n > 0 && ch.fds[i].Revents&(unix.POLLIN|unix.POLLERR|unix.POLLHUP) != 0
		if (c.state == proving || c.state == ready) && (came || c.link.buffered()) {
			c.receive(false)
		}
	}
}

// glance is how often a wait is looked at that no descriptor ends.
const glance = 10 * time.Millisecond

// waitsFor says what can wake the connection: a descriptor, and a time.
func (c *conn) waitsFor(now time.Time) (fd unix.PollFd, limit time.Duration) {
	fd, limit = unix.PollFd{Fd: -1}, slice
	switch {
	case !c.pending():
	case c.state == closed:
		limit = max(c.retryAt.Sub(now), 0)
		if c.haunt != nil {
			limit = max(limit, glance)
		}
	case c.state == dialing:
		fd.Fd, fd.Events = int32(c.fd), unix.POLLOUT
	case c.state == securing:
		limit = glance
	default:
		fd.Fd, fd.Events = int32(c.fd), unix.POLLIN
		if c.wantsWrite() {
			fd.Events |= unix.POLLOUT
		}
		switch {
		case c.link.buffered():
			limit = 0
		case c.held():
			limit = glance
		case c.queue.Len() > 0 && !c.restUntil.IsZero():
			limit = max(c.restUntil.Sub(now), time.Millisecond)
		}
	}
	return fd, min(limit, slice)
}

// abandon ends everything without an answer. Connections on which an answer is
// owed are of no use any more. What was sent of changes may still be executed when
// the server wakes up: until that is over no channel sends a change to it.
func (ch *channel) abandon(err error) {
	// Sent on a connection before, maybe of another node than the one where it waits now.
	again := func(r *request) bool { return r.writes() && r.repeated }
	repeated := false
	for _, c := range ch.active {
		repeated = repeated || slices.ContainsFunc(c.queue.Rest(), again) || slices.ContainsFunc(c.flight.Rest(), again)
	}
	for _, c := range ch.active {
		sent := slices.ContainsFunc(c.flight.Rest(), (*request).writes)
		if c.pending() && (c.flight.Len() > 0 || c.state != ready) {
			c.disconnect(sent)
		}
		if (sent || repeated) && c.haunt != nil {
			c.node.holds.Until(ch.store.helpers, c.haunt)
		}
		c.failAll(err)
	}
}
