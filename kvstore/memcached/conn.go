package memcached

import (
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
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
	ch     *channel
	server *server
	fd     int
	state  connState

	queue  fifo // not sent
	flight fifo // sent (or being sent), replies awaited in this order

	// What is encoded and not sent yet: vectors over scratch and callers' data.
	scratch []byte
	vectors []unix.Iovec
	unsent  int // vectors[unsent:] are to be sent
	msg     unix.Msghdr

	in   []byte // in[r:w] is received and not consumed
	r, w int

	failures int       // dials in a row that led to nothing
	retryAt  time.Time // earliest next dial
	idle     time.Time // first look at which nothing moved; zero: it moves
	troubled time.Time // first failure since the last answer; zero: none
	lastErr  error
	port     int        // local TCP port
	haunt    *exorcism  // must end before the next dial
	probe    *liveProbe // runs while the connection is silent
}

func (c *conn) pending() bool { return c.queue.len() > 0 || c.flight.len() > 0 }

// quiet says that nothing is left to be sent.
func (c *conn) quiet() bool {
	return c.state == ready && c.queue.len() == 0 && c.unsent == len(c.vectors)
}

// wantsWrite says that POLLOUT matters.
func (c *conn) wantsWrite() bool {
	return c.state == dialing || c.state == ready && (c.queue.len() > 0 && !c.held() || c.unsent < len(c.vectors))
}

// held says that the next request is a change and must wait: see server.hold.
func (c *conn) held() bool {
	return c.server.haunts.Load() != 0 && c.queue.len() > 0 && c.queue.front().writes()
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
		if !c.haunt.done() {
			return
		}
		c.haunt = nil
	}
	fd, done, err := dial(*c.server.sockaddr.Load())
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
	pfd := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(pfd[:], 0); n == 0 || err != nil {
		return
	}
	if err := connected(c.fd); err != nil {
		c.drop(err)
		return
	}
	c.port = localPort(c.fd)
	if c.server.sentinelKey == "" {
		c.nowReady()
		return
	}
	c.state = proving
	cmd := append(append(append(c.scratch[:0], "get "...), c.server.sentinelKey...), "\r\n"...)
	iov := [1]unix.Iovec{{Base: &cmd[0]}}
	iov[0].SetLen(len(cmd))
	// A fresh socket has room for a line; a short send is a failed one.
	if n, err := sendVec(c.fd, &c.msg, iov[:]); err != nil || n < len(cmd) {
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
	for n := 0; n < maxEncoded && c.queue.len() > 0 && !c.held(); n++ {
		r := c.queue.pop()
		r.more = false
		if r.writes() && r.op.Fence != nil && r.op.Fence != passed {
			if !r.op.Fence.Passes() {
				c.ch.finish(r, kvstore.ErrFenced)
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
		c.flight.push(r)
	}
	if start < len(c.scratch) {
		c.vector(c.scratch[start:])
	}
}

func (c *conn) vector(b []byte) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	c.vectors = append(c.vectors, v)
}

// errFence ends a connection on which a half-sent batch may no longer be written.
var errFence = errors.New("write lease ended while sending")

// send sends until all is sent or the socket is full.
func (c *conn) send() error {
	for {
		if c.unsent == len(c.vectors) {
			if c.queue.len() == 0 || c.held() {
				return nil
			}
			c.encode()
			if len(c.vectors) == 0 {
				continue
			}
		} else if !c.fencesPass() {
			return errFence
		}
		n, err := sendVec(c.fd, &c.msg, c.vectors[c.unsent:])
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
	for _, r := range c.flight.rest() {
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
			rest := unsafeSlice(v)[n:]
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
	if c.w == len(c.in) || c.r == c.w {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	buf, whole := c.in[c.w:], false
	if wait {
		// The server sends each STORED on its own. Waiting for all of them at
		// once saves a wake-up for each.
		if n := c.expected(); n > 0 && n <= len(buf) {
			buf, whole = buf[:n], true
		}
	}
	n, err := receive(c.fd, buf, wait, whole)
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
	c.w += n
	c.idle, c.troubled, c.probe = time.Time{}, time.Time{}, nil
	c.server.healthy()
	if err := c.consume(); err != nil {
		c.drop(err)
	}
	return true
}

// minReply is the shortest reply to a write or discard: STORED, EXISTS.
const minReply = len("STORED\r\n")

// expected returns how many bytes of replies to writes will come at least before
// anything else, 0 if there is less than two.
func (c *conn) expected() int {
	writes := 0
	for _, r := range c.flight.rest() {
		if !r.writes() {
			break
		}
		writes++
	}
	if writes < 2 {
		return 0
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
	for c.flight.len() > 0 && c.r < c.w {
		req := c.flight.front()
		n, done, result, bad := req.accept(c.in[c.r:c.w], c.flight.rest())
		c.r += n
		if n > 0 || done {
			// Only an answer to work resets the back-off: a server that greets
			// well and then babbles must not be dialled in a tight loop.
			c.failures = 0
		}
		switch {
		case done:
			c.flight.pop()
			c.ch.finish(req, result)
		case n > 0 && req.part == 0:
			// Settled without being done: another step, or another ballast item.
			c.flight.pop()
			c.queue.push(req)
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
	if c.r < c.w && c.flight.len() == 0 {
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
	if err != nil || n == 0 {
		return err
	}
	c.r += n
	if !ok {
		return kvstore.ErrServerLost
	}
	c.nowReady()
	return nil
}

// drop closes the connection and puts what is unanswered back into the queue. A
// server that lost its sentinel fails it instead.
func (c *conn) drop(why error) {
	haunted := false
	for _, r := range c.flight.rest() {
		r.repeated = true
		r.part = 0
		haunted = haunted || r.writes()
	}
	c.disconnect(haunted)
	if c.flight.len() > 0 {
		c.queue.pushFront(c.flight.rest())
		c.flight = fifo{items: c.flight.items[:0]}
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
	c.server.trouble(c.troubled, why)
	c.retryAt = now.Add(backoff(c.failures))
	if c.failures++; c.failures >= resolveAfter {
		c.server.resolveAgain()
	}
}

// disconnect closes the socket and forgets what was received. haunted: the
// server may still execute writes that were sent.
func (c *conn) disconnect(haunted bool) {
	switch {
	case c.state == closed:
	case haunted && c.server.network == "unix":
		c.haunt = c.server.drain(c.fd)
	default:
		_ = unix.Close(c.fd)
		if haunted && c.port != 0 {
			c.haunt = c.server.exorcise(c.port)
		}
	}
	c.fd, c.state, c.port = -1, closed, 0
	c.r, c.w = 0, 0
	c.vectors, c.unsent = c.vectors[:0], 0
	c.idle, c.probe = time.Time{}, nil
}

// failAll ends everything that is queued or in flight.
func (c *conn) failAll(err error) {
	for c.flight.len() > 0 {
		c.ch.finish(c.flight.pop(), err)
	}
	for c.queue.len() > 0 {
		c.ch.finish(c.queue.pop(), err)
	}
}

// backoff: at once after the first failure, then 10 ms doubled up to a second,
// each with a jitter so that many workers do not come back in step.
func backoff(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	d := 10 * time.Millisecond << min(failures-1, 7)
	d = min(d, time.Second)
	return d/2 + rand.N(d/2+1)
}
