package memcached

import (
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// bufferSize of a connection's receive buffer: the replies to 62 reads. Larger
// ones were not faster, as they fall out of the second-level cache.
const bufferSize = 256 << 10

// Limits of one sendmsg. A request with ballast takes five vectors, and the
// kernel takes 1024 (UIO_MAXIOV).
const (
	maxVectors  = 1024
	perRequest  = 5
	maxHead     = 192 // bytes of text around the data of one request
	maxEncoded  = 200 // requests in one sendmsg
	scratchSize = maxEncoded * maxHead
)

// maxKeys of one get. memcached answers each get with a sendmsg of its own, so a
// get of many keys was measured to be 1.7 times as fast as many gets. Lines of
// more than 2048 bytes are handled specially there: 100 keys stay below.
const maxKeys = 100

type connState uint8

const (
	closed  connState = iota // dial at or after retryAt, when haunted is clear
	dialing                  // connect(2) is under way
	proving                  // the get of the sentinel is sent
	ready
)

// conn is one connection of a channel to a server. Only the channel's user
// touches it.
type conn struct {
	ch      *channel
	server  *server
	fd      int
	state   connState
	greet   *greeting // while dialling with TLS or a password
	carrier carrier   // what takes the place of the socket's own bytes; nil on plain ones

	queue  wire.Queue[*request] // not sent
	flight wire.Queue[*request] // sent (or being sent), replies awaited in this order

	// What is encoded and not sent yet: vectors over scratch and callers' data.
	scratch []byte
	vectors []unix.Iovec
	unsent  int // vectors[unsent:] are to be sent
	msg     unix.Msghdr

	in     []byte // in[r:w] is received and not consumed
	r, w   int
	direct direct // receives blocks in place instead

	failures  int       // dials in a row that led to nothing
	retryAt   time.Time // earliest next dial
	idle      time.Time // first look at which nothing moved; zero: it moves
	troubled  time.Time // first failure since the last answer; zero: none
	lastErr   error
	port      int            // local TCP port
	traced    int            // 1 + its slot of the store's trace; 0: none
	haunt     *wire.Drain    // must end before the next dial
	elsewhere wire.Elsewhere // asked while the connection is silent
	slow      bool           // its server fell silent while it waited
}

func (c *conn) pending() bool { return c.queue.Len() > 0 || c.flight.Len() > 0 }

// quiet says that nothing is left to be sent.
func (c *conn) quiet() bool {
	return c.state == ready && c.queue.Len() == 0 && c.unsent == len(c.vectors)
}

// wantsWrite says that POLLOUT matters.
func (c *conn) wantsWrite() bool {
	return c.state == dialing || c.state == ready && (c.queue.Len() > 0 && !c.held() || c.unsent < len(c.vectors))
}

// held says that the next request must wait: see wire.Holds.
func (c *conn) held() bool {
	return c.server.holds.Any() && c.queue.Len() > 0 && c.server.holds.Waits(c.queue.Front().writes())
}

// advance does what can be done without waiting. Errors end in drop.
func (c *conn) advance(now time.Time) {
	switch c.state {
	case closed:
		c.tryDial(now)
	case dialing:
		c.tryFinish()
	}
	if c.state == ready {
		if err := c.send(); err != nil {
			c.drop(err)
		}
	}
}

func (c *conn) tryDial(now time.Time) {
	if now.Before(c.retryAt) {
		return
	}
	if c.haunt != nil {
		if !c.haunt.Done() {
			return
		}
		c.haunt = nil
	}
	fd, done, err := c.dial()
	if err != nil {
		c.drop(err)
		return
	}
	c.fd, c.state = fd, dialing
	if done {
		c.tryFinish()
	}
}

// tryFinish looks whether the dial ended; then it asks for the sentinel.
func (c *conn) tryFinish() {
	switch ready, err := c.connected(); {
	case err != nil:
		c.drop(err)
		return
	case !ready:
		return
	}
	c.port = c.localPort()
	c.traced = 1 + c.server.store.trace.add(c.server.addr, c.port)
	if c.server.sentinelKey == "" {
		c.nowReady()
		return
	}
	c.state = proving
	cmd := append(append(append(c.scratch[:0], "get "...), c.server.sentinelKey...), "\r\n"...)
	iov := wire.Vector(nil, cmd)
	// A fresh socket has room for a line; a short send is a failed one.
	if n, err := c.sendVec(iov); err != nil || n < len(cmd) {
		c.drop(errors.Join(errors.New("cannot send the first line"), err))
	}
}

func (c *conn) nowReady() {
	c.state = ready
	c.idle = time.Time{}
}

// encode turns queued requests into vectors, as many as one sendmsg takes. Those
// whose fence is closed end here.
func (c *conn) encode() {
	c.scratch, c.vectors, c.unsent = c.scratch[:0], c.vectors[:0], 0
	start := 0 // scratch[start:] is not in a vector yet
	var passed *kvstore.Fence
	var last *request
	keys := 0 // of the get that last belongs to
	for n := 0; n < maxEncoded && c.queue.Len() > 0 && !c.held(); n++ {
		r := c.queue.Pop()
		r.more = false
		if r.writes() && r.op.Fence != nil && r.op.Fence != passed {
			if !r.op.Fence.Passes() {
				c.ch.complete(r, kvstore.ErrFenced)
				continue
			}
			passed = r.op.Fence
		}
		r.part = 0
		if last != nil && last.joins(r) && keys < maxKeys {
			last.more = true
			c.scratch = append(c.scratch[:len(c.scratch)-2], ' ')
			c.scratch = append(append(c.scratch, r.key[:]...), "\r\n"...)
			keys++
		} else {
			c.scratch = r.head(c.scratch)
			keys = 1
		}
		last = r
		if r.hasData() {
			c.vector(c.scratch[start:])
			c.vector(r.op.Data)
			start = len(c.scratch)
			c.scratch = append(c.scratch, "\r\n"...)
		}
		if r.ballast > 0 || r.step == stepBallast {
			if r.ballast > 0 {
				c.scratch = appendBallastAdd(c.scratch, int(r.ballast)-1)
			}
			c.vector(c.scratch[start:])
			c.vector(ballastZeros[:])
			start = len(c.scratch)
			c.scratch = append(c.scratch, "\r\n"...)
		}
		c.flight.Push(r)
	}
	if start < len(c.scratch) {
		c.vector(c.scratch[start:])
	}
}

func (c *conn) vector(b []byte) { c.vectors = wire.Vector(c.vectors, b) }

// errFence ends a connection on which a half-sent batch may no longer be written.
var errFence = errors.New("write lease ended while sending")

// send sends until all is sent or the socket is full.
func (c *conn) send() error {
	for {
		if c.unsent == len(c.vectors) {
			if c.queue.Len() == 0 || c.held() {
				return nil
			}
			c.encode()
			if len(c.vectors) == 0 {
				continue
			}
		} else if !c.fencesPass() {
			return errFence
		}
		n, err := c.sendVec(c.vectors[c.unsent:])
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		c.idle = time.Time{}
		c.sent(n)
	}
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

// sent takes n bytes off the vectors.
func (c *conn) sent(n int) {
	for n > 0 {
		v := &c.vectors[c.unsent]
		if n < int(v.Len) {
			rest := wire.Bytes(v)[n:]
			v.Base = &rest[0]
			v.SetLen(len(rest))
			return
		}
		n -= int(v.Len)
		c.unsent++
	}
}

// receive reads once, with wait for up to a slice, and takes the replies that
// are complete. It reports whether something came.
func (c *conn) receive(wait bool) bool {
	var n int
	var err error
	inPlace := (c.carrier == nil || c.carrier.inPlace()) && c.arm()
	if inPlace {
		n, err = c.recvVec(c.direct.rest, wait)
	} else {
		n, err = c.receiveOrdinary(wait)
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
	c.answered()
	if inPlace {
		c.direct.received(n)
		err = c.place()
	} else {
		c.w += n
		err = c.consume()
	}
	if err != nil {
		c.drop(err)
	}
	if c.carrier != nil && c.carrier.more() && c.flight.Len() > 0 {
		c.receive(false) // what TLS has read already no poll tells of
	}
	return true
}

// answered notes that the server said something.
func (c *conn) answered() {
	if c.slow {
		c.slow = false
		c.server.silence.Late(time.Since(c.idle))
	}
	c.idle, c.troubled, c.elsewhere = time.Time{}, time.Time{}, wire.Elsewhere{}
	c.server.outage.Healthy()
	c.server.silence.Speaks()
}

// receiveOrdinary receives into the buffer.
func (c *conn) receiveOrdinary(wait bool) (int, error) {
	if c.w == len(c.in) || c.r == c.w {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	buf, whole := c.in[c.w:], false
	// The server sends each STORED on its own: waiting for all of them at once
	// saves a wake-up for each. And no more than them is read, so that the blocks
	// which follow can be received in place.
	if n := c.expected(); n > 0 && n <= len(buf) {
		buf, whole = buf[:n], wait
	}
	return c.recv(buf, wait, whole)
}

// minReply is the shortest reply to a write or discard: STORED, EXISTS.
const minReply = len("STORED\r\n")

// expected returns how many bytes of replies to writes will come at least before
// anything else.
func (c *conn) expected() int {
	writes := 0
	for _, r := range c.flight.Rest() {
		if !r.writes() {
			break
		}
		writes++
	}
	return writes*minReply - (c.w - c.r)
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
		req := c.flight.Front()
		n, done, result, bad := req.accept(c.in[c.r:c.w], c.flight.Rest())
		c.r += n
		if n > 0 || done {
			// Only an answer to work resets the back-off: a server that greets
			// well and then babbles must not be dialled in a tight loop.
			c.failures = 0
		}
		switch {
		case done:
			c.flight.Pop()
			c.ch.complete(req, result)
		case n > 0 && req.part == 0:
			// Settled without being done: another step, or another ballast item.
			c.flight.Pop()
			c.queue.Push(req)
		}
		if bad != nil {
			return bad
		}
		if n == 0 && !done {
			if c.r == 0 && c.w == len(c.in) {
				return errMalformed // longer than any reply
			}
			return nil
		}
	}
	if c.r < c.w && c.flight.Len() == 0 {
		return errMalformed // an answer that nobody asked for
	}
	return nil
}

// prove takes the reply to the sentinel's get.
func (c *conn) prove() error {
	buf := c.in[c.r:c.w]
	line, n, err := cutLine(buf)
	if err != nil || n == 0 {
		return err
	}
	rep, err := parseReply(line)
	if err != nil {
		return err
	}
	if rep.kind == replyError {
		return &serverError{string(line)}
	}
	n, ok, err := acceptSentinel(rep, n, buf, c.server.sentinelKey, c.server.sentinelValue)
	switch {
	case n > 0 && !ok:
		return kvstore.ErrServerLost
	case err != nil || n == 0:
		return err
	}
	c.r += n
	c.nowReady()
	c.server.seekBallast()
	return nil
}

// failAll ends everything that is queued or in flight.
func (c *conn) failAll(err error) {
	for c.flight.Len() > 0 {
		c.ch.complete(c.flight.Pop(), err)
	}
	for c.queue.Len() > 0 {
		c.ch.complete(c.queue.Pop(), err)
	}
}

// drop closes the connection and puts what is unanswered back into the queue. A
// server that lost its sentinel fails it instead.
func (c *conn) drop(why error) {
	haunted := false
	for _, r := range c.flight.Rest() {
		r.repeated = true
		r.part = 0
		haunted = haunted || r.writes()
	}
	c.disconnect(haunted)
	if c.flight.Len() > 0 {
		c.queue.PushFront(c.flight.Rest())
		c.flight.Clear()
	}
	c.lastErr = why
	if errors.Is(why, kvstore.ErrServerLost) {
		c.failAll(kvstore.ErrServerLost)
		return
	}
	now := time.Now()
	if c.troubled.IsZero() {
		c.troubled = now
	}
	c.server.outage.Trouble(c.troubled, why)
	c.retryAt = now.Add(wire.Backoff(c.failures, c.ch.store.jitter))
	c.failures++
	c.server.where.LookupAgain(c.server.helpers, c.failures)
}

// disconnect closes the socket and forgets what was received. haunted: the
// server may still execute writes that were sent.
func (c *conn) disconnect(haunted bool) {
	switch {
	case c.state == closed:
	case c.greet != nil:
		c.greet.abandon()
	case haunted && c.server.where.Network == "unix":
		c.haunt = c.server.drain(c.fd)
	default:
		c.hangUp()
		if haunted && c.port != 0 {
			c.haunt = c.server.exorcise(map[int]bool{c.port: true})
		}
	}
	if c.traced > 0 {
		var e *wire.Drain
		if haunted {
			e = c.haunt
		}
		c.server.forget(c.traced-1, e)
	}
	c.fd, c.state, c.port, c.traced, c.greet, c.carrier = -1, closed, 0, 0, nil, nil
	c.r, c.w = 0, 0
	c.direct.n = 0
	c.vectors, c.unsent = c.vectors[:0], 0
	c.idle, c.elsewhere = time.Time{}, wire.Elsewhere{}
}
