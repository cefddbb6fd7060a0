package redis

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// bufferSize of a connection's receive buffer: 62 blocks, for those that do not
// come straight into the caller's memory.
const bufferSize = 256 << 10

// Limits of one send: the kernel takes 1024 vectors (UIO_MAXIOV).
const (
	maxVectors  = 1024
	maxEncoded  = 200 // requests
	scratchSize = maxEncoded * 128
)

type connState uint8

const (
	closed   connState = iota // dial at or after retryAt, when haunt is over
	dialing                   // connect(2) is under way
	securing                  // so is the handshake of TLS
	proving                   // the greeting is sent
	ready
)

// conn is one connection of a channel to a node; only the channel's user touches it.
type conn struct {
	ch     *channel
	node   *node
	fd     int
	link   link
	secure *handshake
	state  connState
	listed bool // in channel.active

	queue  wire.Queue[*request] // not sent
	flight wire.Queue[*request] // sent (or being sent), replies awaited in this order

	// What is encoded and not sent yet: vectors over scratch and callers' data.
	scratch []byte
	vectors []unix.Iovec // what the kernel was given
	unsent  []unix.Iovec // the rest of it

	in      []byte // in[r:w] is received and not consumed
	r, w    int
	scatter scatter

	greeting  greeting
	era       uint32         // of the node, before it was dialled
	failures  int            // dials in a row that led to nothing
	retryAt   time.Time      // earliest next dial
	restUntil time.Time      // nothing is sent before: the server asked for patience
	restSince time.Time      // the first time it did, since it gave a result
	idle      time.Time      // first look at which nothing moved; zero: it moves
	troubled  time.Time      // first failure since the last answer; zero: none
	id        int64          // of the connection on its server; 0: not known
	haunt     *wire.Drain    // must be over before the next dial
	elsewhere wire.Elsewhere // asked while the connection is silent
	slow      bool           // its node fell silent while it waited
}

func (c *conn) pending() bool { return c.queue.Len() > 0 || c.flight.Len() > 0 }

// quiet says that nothing is left to be sent.
func (c *conn) quiet() bool {
	return c.state == ready && c.queue.Len() == 0 && len(c.unsent) == 0 && !c.link.unsent()
}

// wantsWrite says that POLLOUT matters.
func (c *conn) wantsWrite() bool {
	return c.state == ready && (len(c.unsent) > 0 || c.link.unsent() || c.queue.Len() > 0 && !c.held() && c.restUntil.IsZero())
}

// held says that the next request must wait: see wire.Holds.
func (c *conn) held() bool {
	return c.node.holds.Any() && c.queue.Len() > 0 && c.node.holds.Waits(c.queue.Front().writes())
}

// advance does what can be done without waiting. Errors end in drop.
func (c *conn) advance(now time.Time) {
	switch c.state {
	case closed:
		c.tryDial(now)
	case dialing:
		c.tryFinish()
	case securing:
		c.trySecure()
	}
	if c.state == ready {
		if err := c.send(); err != nil {
			c.drop(err)
		}
	}
}

// errHaunted: it is not known yet whether the server is done with the connection before.
var errHaunted = errors.New("it does not say that it is done with a broken connection")

func (c *conn) tryDial(now time.Time) {
	// Before the map is asked: if the node is ousted after that, what it acknowledges on
	// this connection must not count.
	c.era = c.node.era.Load()
	if c.node.store.moves() && c.reroute(true) || now.Before(c.retryAt) {
		return
	}
	if c.haunt != nil {
		if !c.haunt.Done() {
			c.unask()
			c.retryAt = now.Add(glance)
			c.trouble(now, errHaunted)
			c.node.store.lookAround()
			return
		}
		c.haunt = nil
	}
	fd, done, err := c.node.where.Dial()
	if err != nil {
		c.drop(err)
		return
	}
	c.fd, c.state = fd, dialing
	if done {
		c.tryFinish()
	}
}

// tryFinish looks whether the dial ended.
func (c *conn) tryFinish() {
	done, err := wire.Connected(c.fd)
	switch {
	case err != nil:
		c.drop(err)
	case done && c.node.store.cfg.TLS != nil:
		c.secure = c.node.startTLS(c.fd)
		c.state = securing
	case done:
		c.link = &plain{fd: c.fd}
		c.greet()
	}
}

func (c *conn) trySecure() {
	l, done, err := c.secure.result()
	if !done {
		return
	}
	c.secure = nil
	if err != nil {
		c.fd, c.state = -1, closed // the handshake closed it
		c.drop(err)
		return
	}
	c.link = l
	c.greet()
}

// greet sends what must be answered before anything else is sent.
func (c *conn) greet() {
	c.state = proving
	c.greeting = greeting{}
	cmd := c.node.appendGreeting(nil, &c.greeting)
	iov := wire.Vector(nil, cmd)
	// A fresh socket has room for some lines; a short send is a failed one.
	n, err := c.link.send(iov)
	if err == nil {
		err = c.link.flush()
	}
	if err != nil || n < len(cmd) || c.link.unsent() {
		c.drop(errors.Join(errors.New("cannot send the greeting"), err))
	}
}

// encode turns queued requests into vectors, as many as one send takes. Those
// whose fence is closed end here.
func (c *conn) encode() {
	c.scratch, c.vectors = c.scratch[:0], c.vectors[:0]
	start := 0 // scratch[start:] is not in a vector yet
	var passed *kvstore.Fence
	at := int64(time.Since(epoch))
	for n := 0; n < maxEncoded && c.queue.Len() > 0 && !c.held(); n++ {
		r := c.queue.Pop()
		if r.writes() && r.op.Fence != nil && r.op.Fence != passed {
			if !r.op.Fence.Passes() {
				c.ch.complete(r, kvstore.ErrFenced)
				continue
			}
			passed = r.op.Fence
		}
		if r.writes() {
			c.ch.log.send(r, at)
		}
		r.part, r.short = 0, false
		c.scratch = r.head(c.scratch)
		if r.hasData() {
			c.vectors = wire.Vector(c.vectors, c.scratch[start:])
			c.vectors = wire.Vector(c.vectors, r.op.Data)
			start = len(c.scratch)
			c.scratch = r.tail(c.scratch)
		}
		c.flight.Push(r)
	}
	if start < len(c.scratch) {
		c.vectors = wire.Vector(c.vectors, c.scratch[start:])
	}
	c.unsent = c.vectors
}

// errFence ends a connection on which a half-sent batch may no longer be written.
var errFence = errors.New("write lease ended while sending")

// send sends until all is sent, the socket is full, or the server wants a rest.
func (c *conn) send() error {
	if c.outdated() {
		return errOutdated
	}
	// Ciphertext that waits for the socket is as unsent as vectors are.
	if c.link.unsent() && !c.fencesPass() {
		return errFence
	}
	if err := c.link.flush(); err != nil {
		return err
	}
	for {
		if len(c.unsent) == 0 {
			if c.queue.Len() == 0 || c.held() || c.resting() {
				return nil
			}
			c.encode()
			if len(c.unsent) == 0 {
				continue
			}
		} else if !c.fencesPass() {
			return errFence
		}
		if c.outdated() { // it was not before the ledger knew of what is sent: see recognise
			return errOutdated
		}
		n, err := c.link.send(c.unsent)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		c.idle = time.Time{}
		c.unsent = wire.Cut(c.unsent, n)
	}
}

// resting says that the server asked for patience, and looks whether that is over. By
// then another node may have what this one refuses.
func (c *conn) resting() bool {
	if c.restUntil.IsZero() {
		return false
	}
	if time.Now().Before(c.restUntil) {
		return true
	}
	c.restUntil = time.Time{}
	if c.node.store.moves() && c.reroute(false) {
		c.restSince = time.Time{} // nobody waits for this node
		return true
	}
	return false
}

// fencesPass looks at the fences again before the rest of a batch is sent.
func (c *conn) fencesPass() bool {
	var passed *kvstore.Fence
	for _, r := range c.flight.Rest() {
		if r.writes() && r.op.Fence != nil && r.op.Fence != passed {
			if !r.op.Fence.Passes() {
				return false
			}
			passed = r.op.Fence
		}
	}
	return true
}

// receive reads once, with wait for up to a slice, and takes the replies that
// are complete. It reports whether something came.
func (c *conn) receive(wait bool) bool {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.in) {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	var n int
	var err error
	planned := c.state == ready && c.plan()
	if planned {
		n, err = c.link.receive(c.scatter.iov, wait, false)
	} else {
		buf, whole := c.in[c.w:], false
		// No more is read than they have, so that blocks which follow come in place.
		if want := c.expected(); want > 0 && want <= len(buf) {
			buf, whole = buf[:want], true
		}
		c.scatter.iov = wire.Vector(c.scatter.iov[:0], buf)
		n, err = c.link.receive(c.scatter.iov, wait, whole)
	}
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		c.drop(err)
		return true
	case n == 0:
		c.drop(io.EOF)
		return true
	}
	if c.slow {
		c.slow = false
		c.node.silence.Late(time.Since(c.idle))
	}
	c.idle, c.troubled, c.elsewhere = time.Time{}, time.Time{}, wire.Elsewhere{}
	c.node.silence.Speaks()
	if planned {
		err = c.gather(n)
	} else {
		c.w += n
		err = c.consume()
	}
	if err != nil {
		c.drop(err)
	}
	return true
}

// expected returns how many bytes of replies to writes will come at least before
// anything else: waiting for all of them at once saves a wake-up for each.
func (c *conn) expected() int {
	bytes := 0
	for _, r := range c.flight.Rest() {
		if !r.writes() {
			break
		}
		bytes += r.minReply()
	}
	return bytes - (c.w - c.r)
}

// consume takes complete replies out of the buffer.
func (c *conn) consume() error {
	if c.state == proving {
		if err := c.prove(); err != nil || c.state != ready {
			return err
		}
		if c.r < c.w {
			return errMalformed
		}
		return c.send()
	}
	for c.flight.Len() > 0 && c.r < c.w {
		rep, n, err := parseReply(c.in[c.r:c.w], bufferSize-maxLine)
		if err != nil {
			return err
		}
		if n == 0 {
			if c.r == 0 && c.w == len(c.in) {
				return errMalformed // longer than any reply
			}
			return nil
		}
		if err := c.answer(rep); err != nil {
			return err
		}
		c.r += n
	}
	if c.r < c.w && c.flight.Len() == 0 {
		return errMalformed // an answer that nobody asked for
	}
	return nil
}

// answer gives a reply to the request at the front.
func (c *conn) answer(rep reply) error {
	req := c.flight.Front()
	out, result, bad := req.accept(rep)
	if (out == outDone || out == outAgain) && bad == nil {
		// Only an answer to work resets the back-off: a server that greets well
		// and then babbles must not be dialled in a tight loop, nor one that says
		// OK to the first commands of a request and refuses the rest.
		c.failures = 0
		c.node.outage.Healthy()
	}
	if bad != nil && !errors.Is(bad, errSpent) {
		return bad
	}
	switch out {
	case outDone:
		if result == nil && req.writes() && !c.ch.log.acknowledge(req, c) {
			return errOutdated
		}
		c.restSince = time.Time{}
		if req.step == stepFlush {
			c.node.unconfirmed.Healthy()
		}
		c.flight.Pop()
		c.ch.complete(req, result)
	case outAgain:
		c.flight.Pop()
		c.queue.Push(req)
	case outLater:
		c.flight.Pop()
		req.hops = 0
		c.queue.Push(req)
		if req.step == stepFlush {
			c.rest(&c.node.unconfirmed, result)
		} else {
			c.rest(&c.node.outage, result)
		}
	case outMoved:
		c.flight.Pop()
		c.ch.redirect(c, req, rep.line)
	}
	return bad
}

// rest pauses the connection: its server answers that it cannot serve now.
func (c *conn) rest(o *wire.Outage, why error) {
	now := time.Now()
	if c.restSince.IsZero() {
		c.restSince = now
	}
	if c.restUntil.IsZero() {
		c.failures++
		c.restUntil = now.Add(wire.Backoff(c.failures, wire.Jitter))
	}
	o.Trouble(c.restSince, why)
	c.node.store.lookAround()
}

// drop closes the connection and puts what is unanswered back into the queue. A
// server that lost its sentinel fails it instead.
func (c *conn) drop(why error) {
	haunted := false
	for _, r := range c.flight.Rest() {
		r.repeated = true
		haunted = haunted || r.writes()
	}
	c.disconnect(haunted)
	if c.flight.Len() > 0 {
		c.queue.PushFront(c.flight.Take())
	}
	c.unask()
	if errors.Is(why, kvstore.ErrServerLost) {
		c.failAll(kvstore.ErrServerLost)
		return
	}
	now := time.Now()
	c.trouble(now, why)
	c.retryAt = now.Add(wire.Backoff(c.failures, wire.Jitter))
	c.failures++
	c.node.where.LookupAgain(c.node.store.helpers, c.failures)
	c.node.store.lookAround()
}

// trouble says that the node cannot be used now, since when it could not.
func (c *conn) trouble(now time.Time, why error) {
	if c.troubled.IsZero() {
		c.troubled = now
	}
	c.node.outage.Trouble(c.troubled, why)
}

// disconnect closes the socket and forgets what was received. haunted: the
// server may still execute writes that were sent.
func (c *conn) disconnect(haunted bool) {
	switch {
	case c.secure != nil:
		c.secure.abandon() // which closes the socket
	case c.link != nil:
		c.link.close()
	case c.state != closed:
		_ = unix.Close(c.fd)
	}
	if haunted && c.state == ready {
		c.haunt = c.node.drain(c.id)
	}
	c.fd, c.link, c.secure, c.state, c.id = -1, nil, nil, closed, 0
	c.r, c.w = 0, 0
	c.vectors, c.unsent = c.vectors[:0], nil
	c.idle, c.restUntil, c.elsewhere = time.Time{}, time.Time{}, wire.Elsewhere{}
}
