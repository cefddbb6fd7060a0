package memcached

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// TLS and passwords lie beside the data path. A dial that needs either is done by
// a helper (greeting); the worker polls its bell as it polls any dial. What comes
// back is a descriptor and, with TLS, a sealed carrier over it: conn asks for one in
// the few places that touch the socket, and a plain connection has none.
//
// A sealed connection costs what crypto/tls costs: each byte is copied twice and
// enciphered once more on each side. The server's threads pay the same, and answer
// with a record, so a system call, per reply.

// errWait is what a raw connection answers when nothing can be read now. crypto/tls
// keeps what it has read so far, as the error says that it is temporary.
var errWait net.Error = waitError{}

type waitError struct{}

func (waitError) Error() string   { return "nothing to read yet" }
func (waitError) Timeout() bool   { return true }
func (waitError) Temporary() bool { return true }

// rawConn is a socket as crypto/tls wants it. One goroutine uses it at a time.
type rawConn struct {
	fd int
	// ctx is set while the connection is greeted: reads and writes then wait until
	// it ends.
	ctx context.Context
	// wait: a read may block for wire.GraceMin.
	wait bool
	// out is what was written and the socket did not take yet: crypto/tls cannot
	// write half a record, so a write always succeeds.
	out []byte
	// msg and iov are for flush.
	msg unix.Msghdr
	iov [1]unix.Iovec
}

// over says that the time of the greeting is.
func (r *rawConn) over() bool { return r.ctx != nil && r.ctx.Err() != nil }

// Read implements net.Conn.
func (r *rawConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.over() { // though something comes now and then
			return 0, r.ctx.Err()
		}
		n, err := wire.ReceiveBytes(r.fd, p, r.wait || r.ctx != nil, false)
		switch {
		case err == unix.EAGAIN && r.ctx == nil:
			return 0, errWait
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

// Write implements net.Conn.
func (r *rawConn) Write(p []byte) (int, error) {
	if r.over() {
		return 0, r.ctx.Err()
	}
	r.out = append(r.out, p...)
	for r.ctx != nil {
		err := r.flush()
		if err == nil {
			break
		}
		if err != unix.EAGAIN {
			return 0, err
		}
		if r.over() {
			return 0, r.ctx.Err()
		}
		pfd := [1]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLOUT}}
		_, _ = unix.Poll(pfd[:], int(wire.Slice/time.Millisecond))
	}
	return len(p), nil
}

// flush sends what is left; EAGAIN: the socket is full.
func (r *rawConn) flush() error {
	sent := 0
	for sent < len(r.out) {
		n, err := wire.Send(r.fd, &r.msg, wire.Vector(r.iov[:0], r.out[sent:]))
		if err != nil {
			r.out = r.out[:copy(r.out, r.out[sent:])]
			return err
		}
		sent += n
	}
	r.out = r.out[:0]
	return nil
}

// Close and what follows complete net.Conn. The descriptor belongs to whoever
// dialled.
func (r *rawConn) Close() error                     { return nil }
func (r *rawConn) LocalAddr() net.Addr              { return rawAddr{} }
func (r *rawConn) RemoteAddr() net.Addr             { return rawAddr{} }
func (r *rawConn) SetDeadline(time.Time) error      { return nil }
func (r *rawConn) SetReadDeadline(time.Time) error  { return nil }
func (r *rawConn) SetWriteDeadline(time.Time) error { return nil }

type rawAddr struct{}

func (rawAddr) Network() string { return "raw" }
func (rawAddr) String() string  { return "raw" }

// What is enciphered at once: a record's largest payload, and how much of what was
// encoded (the rest follows when the socket has taken this).
const (
	recordSize = 16 << 10
	maxSealed  = 8 * recordSize
)

// sealed is a connection's carrier under TLS. Only the channel's user touches it.
type sealed struct {
	raw   *rawConn
	tls   *tls.Conn
	plain []byte // gathered, to be cut into records
	// held is how much of the vectors is enciphered and has not left entirely.
	held int
	// full: the last receive stopped because the caller's buffer was full, so there
	// may be more that no poll would tell of.
	full bool
}

// send is wire.Send through TLS; the vectors begin with a command. It claims n bytes
// only when all that they became has left: after EAGAIN it must be called again
// with the same vectors, as sends on a plain socket are.
func (w *sealed) send(iov []unix.Iovec) (int, error) {
	if w.held == 0 {
		n, err := w.encipher(iov)
		if err != nil {
			return 0, err
		}
		w.held = n
	}
	if err := w.raw.flush(); err != nil {
		return 0, err
	}
	n := w.held
	w.held = 0
	return n, nil
}

// encipher turns commands into records, each of whole commands. Tried with
// memcached 1.6.18: when a value ends inside a record, it waits for the socket and
// forgets what OpenSSL has already read behind the value, for ever if nothing more
// comes.
func (w *sealed) encipher(iov []unix.Iovec) (n int, err error) {
	w.plain = w.plain[:0]
	for i := 0; i < len(iov) && len(w.plain) < maxSealed; i++ {
		b := wire.Bytes(&iov[i])
		w.plain = append(w.plain, b[:min(len(b), maxSealed-len(w.plain))]...)
	}
	for n < len(w.plain) {
		m := wholeCommands(w.plain[n:])
		if m == 0 {
			if n == 0 {
				return 0, errMalformed // a command that is longer than a record: there is none
			}
			break
		}
		if _, err := w.tls.Write(w.plain[n : n+m]); err != nil {
			return 0, err
		}
		n += m
	}
	return n, nil
}

// wholeCommands returns the length of the commands at the beginning of b that fit a
// record.
func wholeCommands(b []byte) (end int) {
	for end < len(b) {
		i := bytes.IndexByte(b[end:], '\n')
		next := end + i + 1
		switch b[end] {
		case 'a', 'c', 'r': // add, cas, replace
			next += kvstore.BlockSize + len("\r\n")
		}
		if i < 0 || next > min(len(b), recordSize) {
			break
		}
		end = next
	}
	return end
}

// receive is wire.ReceiveBytes through TLS: EAGAIN, or what is there; 0 is the end.
func (w *sealed) receive(buf []byte, wait, whole bool) (n int, err error) {
	w.raw.wait = wait || whole
	var begin time.Time
	if whole {
		begin = time.Now()
	}
	for n < len(buf) && err == nil {
		var m int
		m, err = w.tls.Read(buf[n:])
		n += m
		w.raw.wait = whole && time.Since(begin) < wire.GraceMin
	}
	w.full = n == len(buf)
	switch {
	case n > 0: // a lasting error comes again
		return n, nil
	case errors.Is(err, errWait):
		return 0, unix.EAGAIN
	case errors.Is(err, io.EOF):
		return 0, nil
	}
	return 0, err
}

// receiveVec implements carrier.
func (w *sealed) receiveVec([]unix.Iovec, bool) (int, error) { return 0, unix.ENOSYS }

// inPlace implements carrier: crypto/tls has copied already.
func (w *sealed) inPlace() bool { return false }

// more implements carrier.
func (w *sealed) more() bool { return w.full }

// hangUp implements carrier: without a farewell, as the socket is reset.
func (w *sealed) hangUp() bool { return false }

// port implements carrier: the socket's.
func (w *sealed) port() int { return 0 }

// greeting is a dial that takes more than connect(2).
type greeting struct {
	cancel context.CancelFunc
	mu     sync.Mutex // guards what follows; a leaf
	// bell is an eventfd that cannot be written to until the greeting is over.
	bell   int
	gone   bool // the worker gave it up
	over   bool
	fd     int // what was dialled; -1: nothing
	sealed *sealed
	err    error
}

// fullBell is the largest count of an eventfd: it is not writable then.
var fullBell = [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// greets says whether a dial takes more than connect(2).
func (s *server) greets() bool { return s.store.cfg.TLS != nil || s.store.cfg.Auth != nil }

// greet begins a greeting.
func (s *server) greet() (*greeting, error) {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(bell, fullBell[:]); err != nil {
		unix.Close(bell)
		return nil, err
	}
	g := &greeting{bell: bell, fd: -1}
	ctx, cancel := context.WithTimeout(s.helpers.Life(), s.store.cfg.TryTimeout)
	g.cancel = cancel
	s.helpers.Go(func(context.Context) {
		defer cancel()
		fd, w, err := s.dialSealed(ctx)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.fd, g.sealed, g.err, g.over = fd, w, err, true
		if g.gone {
			g.closeFD()
			return
		}
		var count [8]byte
		_, _ = unix.Read(g.bell, count[:])
	})
	return g, nil
}

func (g *greeting) closeFD() {
	if g.fd >= 0 {
		_ = unix.Close(g.fd)
		g.fd = -1
	}
}

// rung says whether the greeting is over.
func (g *greeting) rung() bool {
	pfd := [1]unix.PollFd{{Fd: int32(g.bell), Events: unix.POLLOUT}}
	n, err := unix.Poll(pfd[:], 0)
	return n > 0 && err == nil
}

// take returns what a greeting led to; its bell has rung.
func (g *greeting) take() (fd int, w *sealed, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	_ = unix.Close(g.bell)
	return g.fd, g.sealed, g.err
}

// abandon ends a greeting that nobody waits for any more.
func (g *greeting) abandon() {
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	_ = unix.Close(g.bell)
	if g.over {
		g.closeFD()
	}
}

// dialSealed connects, proves who both sides are, and leaves a blocking socket.
func (s *server) dialSealed(ctx context.Context) (fd int, w *sealed, err error) {
	fd, _, err = s.where.Dial()
	if err != nil {
		return -1, nil, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd, w = -1, nil
		}
	}()
	for ready := false; !ready; {
		pfd := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, _ = unix.Poll(pfd[:], int(wire.Slice/time.Millisecond))
		if ctx.Err() != nil {
			return fd, nil, ctx.Err()
		}
		if ready, err = wire.Connected(fd); err != nil {
			return fd, nil, err
		}
	}
	raw := &rawConn{fd: fd, ctx: ctx}
	var line net.Conn = raw
	if s.store.cfg.TLS != nil {
		c := tls.Client(raw, s.tlsConfig())
		if err := c.HandshakeContext(context.Background()); err != nil { // raw looks at ctx
			return fd, nil, untrusted(err)
		}
		w = &sealed{raw: raw, tls: c, plain: make([]byte, 0, maxSealed)}
		line = c
	}
	if err := s.authenticate(line); err != nil {
		return fd, nil, err
	}
	raw.ctx = nil
	return fd, w, nil
}

// tlsConfig is the store's, for this server.
func (s *server) tlsConfig() *tls.Config {
	cfg := s.store.cfg.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(s.addr)
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// ErrUntrusted: TLS could not be agreed on with a server, or one side does not
// trust the other's certificate. There is no way around it: a connection that was
// asked to be encrypted is never made in the clear.
var ErrUntrusted = errors.New("no trusted TLS connection")

func untrusted(err error) error { return fmt.Errorf("%w: %w", ErrUntrusted, err) }
