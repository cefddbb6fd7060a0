package redis

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// crypto/tls stands on a net.Conn. Ours is a raw socket without the netpoller: reads
// answer "not now" instead of waiting longer than a slice, which crypto/tls lets
// pass (a temporary net.Error keeps what came of a record); writes never do, since
// it does not: what the socket does not take is kept and sent later.

// maxUnsent is how much ciphertext waits for the socket before send takes no more.
const maxUnsent = 1 << 20

// rawConn is a socket as crypto/tls sees it.
type rawConn struct {
	fd   int
	wait bool // the next read may wait for a slice
	out  []byte
	msg  unix.Msghdr
	iov  [1]unix.Iovec
	// ctx is set while the handshake runs: reads and writes wait, until it ends.
	ctx context.Context
}

// errNotNow is temporary.
type errNotNow struct{}

func (errNotNow) Error() string   { return "nothing to read now" }
func (errNotNow) Timeout() bool   { return true }
func (errNotNow) Temporary() bool { return true }

// over says that the time of the handshake is.
func (c *rawConn) over() bool { return c.ctx != nil && c.ctx.Err() != nil }

func (c *rawConn) Read(p []byte) (int, error) {
	for {
		if c.over() { // though something comes now and then
			return 0, c.ctx.Err()
		}
		c.iov[0].Base = &p[0]
		c.iov[0].SetLen(len(p))
		n, err := wire.Receive(c.fd, &c.msg, c.iov[:], c.wait || c.ctx != nil, false)
		c.wait = false // what follows in the same call must be there already
		switch {
		case err == unix.EAGAIN && c.ctx == nil:
			return 0, errNotNow{}
		case err == unix.EAGAIN:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c *rawConn) Write(p []byte) (int, error) {
	if c.over() {
		return 0, c.ctx.Err()
	}
	c.out = append(c.out, p...)
	err := c.flush()
	for err == nil && len(c.out) > 0 && c.ctx != nil {
		if c.over() {
			return 0, c.ctx.Err()
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}, int(slice/time.Millisecond))
		err = c.flush()
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// flush sends what is kept, as far as the socket takes it.
func (c *rawConn) flush() error {
	for len(c.out) > 0 {
		c.iov[0].Base = &c.out[0]
		c.iov[0].SetLen(len(c.out))
		n, err := wire.Send(c.fd, &c.msg, c.iov[:])
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		if c.out = c.out[:copy(c.out, c.out[n:])]; len(c.out) > 0 {
			return nil
		}
	}
	return nil
}

// Close does nothing: whoever dialled closes the socket, once. crypto/tls would do it
// beside the handshake, and the second close hit whoever has the number by then.
func (c *rawConn) Close() error                     { return nil }
func (c *rawConn) LocalAddr() net.Addr              { return nil }
func (c *rawConn) RemoteAddr() net.Addr             { return nil }
func (c *rawConn) SetDeadline(time.Time) error      { return nil }
func (c *rawConn) SetReadDeadline(time.Time) error  { return nil }
func (c *rawConn) SetWriteDeadline(time.Time) error { return nil }

// secured is a link with TLS.
type secured struct {
	raw  *rawConn
	conn *tls.Conn
	text []byte // gathers small vectors into one record
	full bool   // the last receive filled its vectors: there may be more inside
}

// recordSize is the largest plaintext of one TLS record.
const recordSize = 16 << 10

func (s *secured) send(iov []unix.Iovec) (n int, err error) {
	if err := s.raw.flush(); err != nil {
		return 0, err
	}
	if len(s.raw.out) >= maxUnsent {
		return 0, unix.EAGAIN
	}
	s.text = s.text[:0]
	for i := range iov {
		for b := wire.Bytes(&iov[i]); len(b) > 0; {
			k := min(len(b), recordSize-len(s.text))
			s.text = append(s.text, b[:k]...)
			b, n = b[k:], n+k
			if len(s.text) < recordSize {
				continue
			}
			if _, err := s.conn.Write(s.text); err != nil {
				return 0, err
			}
			if s.text = s.text[:0]; len(s.raw.out) >= maxUnsent {
				return n, nil
			}
		}
	}
	if len(s.text) > 0 {
		_, err = s.conn.Write(s.text)
	}
	return n, err
}

func (s *secured) unsent() bool   { return len(s.raw.out) > 0 }
func (s *secured) flush() error   { return s.raw.flush() }
func (s *secured) buffered() bool { return s.full }
func (s *secured) close()         { _ = unix.Close(s.raw.fd) } // without a farewell, as without TLS

func (s *secured) receive(iov []unix.Iovec, wait, _ bool) (total int, err error) {
	s.raw.wait = wait && !s.full
	s.full = false
	for i := range iov {
		for b := wire.Bytes(&iov[i]); len(b) > 0; {
			n, err := s.conn.Read(b)
			total += n
			b = b[n:]
			if n > 0 {
				s.raw.wait = false
			}
			if err == nil {
				continue
			}
			if _, ok := err.(errNotNow); !ok && err != io.EOF {
				if total > 0 {
					return total, nil // the error comes again
				}
				return 0, err
			}
			if err == io.EOF || total > 0 {
				return total, nil
			}
			return 0, unix.EAGAIN
		}
	}
	s.full = true
	return total, nil
}

// handshake runs beside the channel; its socket belongs to it until result gives
// it away.
type handshake struct {
	over  chan struct{} // closed at the end
	link  *secured
	err   error
	owner atomic.Int32 // 0 runs, 1 ended, 2 abandoned
}

// startTLS begins the handshake on a connected socket.
func (n *node) startTLS(fd int) *handshake {
	h := &handshake{over: make(chan struct{})}
	n.store.helpers.Go(func(ctx context.Context) {
		defer close(h.over)
		ctx, cancel := context.WithTimeout(ctx, n.store.cfg.TryTimeout)
		defer cancel()
		raw := &rawConn{fd: fd, ctx: ctx}
		conn := tls.Client(raw, n.store.tlsFor(n.addr))
		h.err = conn.HandshakeContext(context.Background()) // raw looks at ctx
		raw.ctx = nil
		h.link = &secured{raw: raw, conn: conn, text: make([]byte, 0, recordSize)}
		if h.err != nil || !h.owner.CompareAndSwap(0, 1) {
			_ = unix.Close(fd)
		}
	})
	return h
}

// result returns the secured link once the handshake is over; its error means that
// the socket is closed.
func (h *handshake) result() (*secured, bool, error) {
	select {
	case <-h.over:
		return h.link, true, h.err
	default:
		return nil, false, nil
	}
}

// abandon closes the socket, now or when the handshake ends.
func (h *handshake) abandon() {
	if !h.owner.CompareAndSwap(0, 2) && h.err == nil {
		<-h.over
		h.link.close()
	}
}
