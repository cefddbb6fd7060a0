package memcached

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/awake"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// channel is one worker's connections to all servers.
type channel struct {
	store *Store
	place kvstore.Placement
	// conns of server i are conns[i*Connections : (i+1)*Connections]. All are
	// made with the channel, and dialled when first used.
	conns []*conn
	per   int
	turn  []int // per server: which connection takes the next run of requests

	requests []request
	pending  int // requests without a result
	flushErr error
	closed   bool

	active []*conn
	fds    []unix.PollFd
	awake  awake.Wait
}

var _ kvstore.Channel = (*channel)(nil)

func newChannel(s *Store, p kvstore.Placement) *channel {
	ch := &channel{
		store: s, place: p, per: s.cfg.Connections,
		turn:     make([]int, len(s.servers)),
		requests: make([]request, 0, 64),
	}
	for _, srv := range s.servers {
		for range ch.per {
			ch.conns = append(ch.conns, &conn{ch: ch, server: srv, fd: -1})
		}
	}
	ch.active = make([]*conn, 0, len(ch.conns))
	ch.fds = make([]unix.PollFd, 0, len(ch.conns))
	return ch
}

// Do implements kvstore.Channel.
func (ch *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if ch.begin(ctx, ops) {
		ch.run(ctx, wire.Stays)
		ch.settleServers()
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
	ch.settleServers()
	return true
}

// Finish implements kvstore.Channel.
func (ch *channel) Finish(ctx context.Context) {
	ch.run(ctx, wire.Stays)
	ch.settleServers()
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
}

// enter checks an operation and queues it on a connection of its server.
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
	r.begin(op, ch.store.servers[number])
	c := ch.conns[number*ch.per]
	if ch.per > 1 {
		c = ch.spread(number)
	}
	ch.queue(c, r)
}

// spread gives each connection of a server a run of requests at a time: short
// runs would turn one system call into several.
func (ch *channel) spread(number int) *conn {
	const run = 16
	t := ch.turn[number]
	ch.turn[number] = (t + 1) % (run * ch.per)
	return ch.conns[number*ch.per+t/run]
}

func (ch *channel) queue(c *conn, r *request) {
	if c.in == nil {
		c.in = make([]byte, bufferSize)
		c.scratch = make([]byte, 0, scratchSize)
		c.vectors = make([]unix.Iovec, 0, maxVectors)
	}
	c.queue.Push(r)
	ch.pending++
}

// complete gives a request its result.
func (ch *channel) complete(r *request, err error) {
	ch.pending--
	if r.op == nil {
		if r.step == stepBallast && err != nil {
			r.server.ballastLost(int(r.ballastNumber()))
		}
		if r.step == stepSentinel && err != nil && !errors.Is(ch.flushErr, kvstore.ErrServerLost) {
			ch.flushErr = &kvstore.OpError{Op: "flush", Server: r.server.addr, Err: err}
		}
		return
	}
	if err != nil {
		r.op.Err = wire.OpError(r.op, r.server.addr, err)
		return
	}
	r.op.Err = nil
	if r.op.Code != kvstore.Read {
		// Before anybody learns of it: the next flush, of whatever channel, asks this server.
		if written := &r.server.written; !written.Load() {
			written.Store(true)
		}
		if r.op.Code == kvstore.Discard && r.server.ballast.missing.Load() != 0 {
			ch.refill(r.server)
		}
	}
}

// refill uses the room of a discarded block to bring back a ballast item.
func (ch *channel) refill(srv *server) {
	for _, c := range ch.active { // the discard came over one of them
		if c.server != srv {
			continue
		}
		if i, ok := srv.missingBallast(); ok {
			ch.queue(c, &request{step: stepBallast, server: srv, tries: uint8(i)})
		}
		return
	}
}

// settleServers ends a batch: nothing keeps pointing into the callers' buffers.
func (ch *channel) settleServers() {
	for _, c := range ch.conns {
		if c.unsent < len(c.vectors) {
			// A server that answered before it had read everything.
			c.disconnect(false)
		}
	}
}

// Flush implements kvstore.Channel: all servers that this store ever wrote to must
// still know their sentinel. All layers are covered.
func (ch *channel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	if ch.closed {
		return &kvstore.OpError{Op: "flush", Err: kvstore.ErrClosed}
	}
	if ctx.Err() != nil {
		return &kvstore.OpError{Op: "flush", Err: wire.ContextError(ctx)}
	}
	ch.reset(len(ch.store.servers))
	ch.flushErr = nil
	for i, srv := range ch.store.servers {
		if srv.sentinelKey == "" || !srv.written.Load() {
			continue
		}
		ch.requests = append(ch.requests, request{step: stepSentinel, server: srv})
		ch.queue(ch.conns[i*ch.per], &ch.requests[len(ch.requests)-1])
	}
	ch.run(ctx, wire.Stays)
	return ch.flushErr
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
	ch.active = ch.active[:0]
	for _, c := range ch.conns {
		if c.pending() {
			ch.active = append(ch.active, c)
		}
	}
	patient := until != wire.Looks // until a server stays silent for wire.GraceMin
	var now time.Time
	for ch.pending > 0 {
		for _, c := range ch.active {
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

// silent notes which servers have been silent for longer than their grace, and
// says whether all that is pending waits for such servers.
func (ch *channel) silent(now time.Time) bool {
	all := true
	for _, c := range ch.active {
		if !c.pending() {
			continue
		}
		since := c.idle
		if c.state == closed {
			since = c.troubled
		}
		// What is held waits for a proof that may take long.
		held := c.flight.Len() == 0 && c.held()
		if !held && (since.IsZero() || now.Sub(since) < c.server.silence.Grace()) {
			all = false
			continue
		}
		c.server.silence.Fall()
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

// await receives from c, which is all that there is to wait for. The answer to a
// single request it awaits without sleeping, if that pays: with more of them the
// CPUs have other work. TLS sleeps, as each look costs it too much, and so do
// simulations, which must not depend on how fast this machine is.
func (ch *channel) await(c *conn) bool {
	if len(ch.requests) > 1 || c.carrier != nil {
		return c.receive(true)
	}
	return ch.awake.Answer(c.receive)
}

// poll waits until a connection can go on, a dial is due, or a slice is over.
func (ch *channel) poll(ctx context.Context, until wire.Until) {
	wait := wire.Slice
	if until == wire.Leaves {
		wait = wire.GraceMin
	}
	now := time.Now()
	ch.fds = ch.fds[:0]
	for _, c := range ch.active {
		fd := unix.PollFd{Fd: -1}
		switch {
		case !c.pending():
		case c.state == closed:
			d := c.retryAt.Sub(now)
			if c.haunt != nil {
				d = max(d, 10*time.Millisecond)
			}
			wait = min(wait, max(d, 0))
		default:
			fd.Fd, fd.Events = int32(c.fd), unix.POLLIN
			if c.wantsWrite() {
				fd.Events |= unix.POLLOUT
			}
			if c.held() {
				wait = min(wait, 10*time.Millisecond)
			}
			if c.state == dialing {
				fd.Events = unix.POLLOUT
			}
		}
		ch.fds = append(ch.fds, fd)
	}
	if t, ok := ctx.Deadline(); ok {
		wait = min(wait, max(t.Sub(now), 0))
	}
	if ch.store.cfg.Network != nil {
		ch.waitLinks(wait)
		return
	}
	// Rounded up, or the last millisecond before a dial would be a busy loop.
	n, err := unix.Poll(ch.fds, int((wait+time.Millisecond-1)/time.Millisecond))
	if err != nil || n <= 0 {
		return
	}
	for i, c := range ch.active {
		if ch.fds[i].Revents&(unix.POLLIN|unix.POLLERR|unix.POLLHUP) != 0 && (c.state == proving || c.state == ready) {
			c.receive(false)
		}
	}
}

// abandon ends everything without an answer. Connections on which an answer is
// owed are of no use any more. What was sent of changes may still be executed when
// the server wakes up: until that is over no channel sends a change to it.
func (ch *channel) abandon(err error) {
	for _, c := range ch.active {
		if !c.pending() {
			continue
		}
		haunted := false
		for _, r := range c.flight.Rest() {
			haunted = haunted || r.writes()
		}
		if c.flight.Len() > 0 || c.state != ready {
			c.disconnect(haunted)
		}
		for _, r := range c.queue.Rest() {
			haunted = haunted || r.writes() && r.repeated // sent on the connection before
		}
		if haunted && c.haunt != nil {
			c.server.holds.Until(c.server.helpers, c.haunt)
		}
		c.failAll(err)
	}
}
