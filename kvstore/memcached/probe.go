package memcached

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// errSilent: the server answers on a new connection but not on this one.
var errSilent = errors.New("no answer on this connection")

// tick looks after a connection on which nothing may move.
func (c *conn) tick(now time.Time) {
	if !c.pending() || c.state == closed {
		return
	}
	if c.flight.Len() == 0 && c.held() {
		c.idle = time.Time{}
		return
	}
	if c.idle.IsZero() {
		c.idle = now
		return
	}
	silent := now.Sub(c.idle)
	if silent >= wire.OutageFirst {
		c.server.outage.Trouble(c.idle, errors.New("no answer"))
	}
	if silent < c.ch.store.cfg.TryTimeout {
		return
	}
	if c.state != ready {
		// Nothing but the sentinel's get was sent: trying anew is safe.
		c.drop(fmt.Errorf("no answer within %v", c.ch.store.cfg.TryTimeout))
		return
	}
	if c.elsewhere.Answers(now, c.server.helpers, c.server.lives) {
		c.drop(errSilent)
	}
}

// lives says whether the server answers on a new connection.
func (s *server) lives(ctx context.Context) bool { return s.answers(ctx) == nil }

func (s *server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.talk(ctx, []byte("version\r\n"), func(in *lineReader) error { _, err := in.line(); return err })
}

// awaited logs that a drain waits for any answer: other connections, whose outage is
// another, may be healthy meanwhile, as at the server's limit of connections (-c).
func (s *server) awaited() *wire.Outage {
	return &wire.Outage{
		Name: "memcached " + s.addr + ", asked whether it has dropped connections that requests wait for,",
		Log:  s.store.cfg.Log,
	}
}

// drain begins to wait for the end of a connection to a unix socket, whose
// descriptor it takes over. No proxy is in between, so the server closes its end
// when it has read, and done, all that we sent.
func (s *server) drain(fd int) *wire.Drain {
	_ = unix.Shutdown(fd, unix.SHUT_WR) // fails if the other end is gone, which the first read finds
	return wire.NewDrain(s.helpers, func(ctx context.Context) {
		defer unix.Close(fd)
		var heard time.Time // when the server first answered elsewhere
		since := time.Now()
		asked, awaited := since, s.awaited()
		for buf := make([]byte, 16<<10); ctx.Err() == nil; {
			// It waits for wire.GraceMin: SO_RCVTIMEO.
			n, err := wire.ReceiveBytes(fd, buf, true, false)
			if n == 0 && err != unix.EAGAIN {
				return
			}
			if heard.IsZero() && time.Since(asked) > time.Second {
				asked = time.Now()
				if err := s.answers(ctx); err == nil {
					heard = asked
					awaited.Healthy()
				} else {
					awaited.Trouble(since, err)
				}
			}
			if !heard.IsZero() && time.Since(heard) > wire.DrainLimit {
				s.store.cfg.Log("warning: memcached %s keeps a connection open that was closed %v ago; going on without proof that it is drained", s.addr, wire.DrainLimit)
				return
			}
		}
	})
}

// exorcise begins to wait for the end of the connections from local ports of ours.
func (s *server) exorcise(ports map[int]bool) *wire.Drain {
	var listed int
	var err error
	since, awaited := time.Now(), s.awaited()
	asked := func(ctx context.Context) (has, answered bool) {
		listed, err = s.lists(ctx, ports)
		var said *serverError // it answers and cannot tell
		answered = err == nil || errors.As(err, &said)
		switch {
		case answered:
			awaited.Healthy()
		case ctx.Err() == nil:
			awaited.Trouble(since, err)
		}
		return err != nil || listed != 0, answered
	}
	return wire.StartDrain(s.helpers, asked, func() {
		why := fmt.Sprintf("it still lists one, from local port %d,", listed)
		if err != nil {
			why = fmt.Sprintf("it cannot say (%v)", err)
		}
		s.store.cfg.Log("warning: memcached %s: going on after %v without proof that closed connections are drained: %s", s.addr, wire.DrainLimit, why)
	})
}

// errNotListed: the server does not list the very connection that asks, so that a
// port that is missing proves nothing: a proxy is in between, or an address is
// translated.
var errNotListed = &serverError{"connections without ours: is there a proxy in between?"}

// lists returns one of some local ports of ours from which the server has a
// connection; 0 if it has none.
func (s *server) lists(ctx context.Context, ports map[int]bool) (listed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	self := false
	err = s.talk(ctx, []byte("stats conns\r\n"), func(in *lineReader) error {
		own := in.conn.LocalAddr().(*net.TCPAddr).AddrPort()
		asker := netip.AddrPortFrom(own.Addr().Unmap(), own.Port())
		ours := ownAddresses(asker.Addr())
		return in.stats(func(name, value string) {
			if !strings.HasSuffix(name, ":addr") {
				return
			}
			switch addr, ok := clientAddress(value); {
			case !ok:
			case addr == asker:
				self = true
			case ports[int(addr.Port())] && (addr.Addr().IsLoopback() || ours[addr.Addr()]):
				listed = int(addr.Port())
			}
		})
	})
	if err == nil && listed == 0 && !self {
		err = errNotListed
	}
	return listed, err
}

// clientAddress reads what a server says of a client: tcp:192.0.2.1:40000, or
// tcp6:[2001:db8::1]:40000, or tcp6:[::ffff:192.0.2.1]:40000, which is the first one.
func clientAddress(value string) (netip.AddrPort, bool) {
	_, rest, _ := strings.Cut(value, ":")
	addr, err := netip.ParseAddrPort(rest)
	return netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), err == nil
}

// ownAddresses are those of this machine. A connection of ours need not come from the
// address that asks: a name may stand for 127.0.0.1 and ::1, and a machine have several.
func ownAddresses(asker netip.Addr) map[netip.Addr]bool {
	all := map[netip.Addr]bool{asker: true}
	addrs, _ := net.InterfaceAddrs() // without them the asker's, as good as can be
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all[p.Addr().Unmap()] = true
		}
	}
	return all
}

// talk sends a command on a connection of its own and lets read take the reply.
// It is for what is rare; errors are ErrUnreachable.
func (s *server) talk(ctx context.Context, cmd []byte, read func(*lineReader) error) error {
	return s.talkMany(ctx, [][]byte{cmd}, read)
}

// talkMany sends several commands at once. They come one by one because under TLS
// each is a write of its own, for the reason that encipher gives.
func (s *server) talkMany(ctx context.Context, cmds [][]byte, read func(*lineReader) error) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return unreachable(ctx, err)
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(s.store.cfg.TryTimeout)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if s.store.cfg.TLS == nil {
		cmds = [][]byte{bytes.Join(cmds, nil)}
	}
	for _, cmd := range cmds {
		if _, err := conn.Write(cmd); err != nil {
			return unreachable(ctx, err)
		}
	}
	in := &lineReader{conn: conn, buf: make([]byte, 0, 16<<10)}
	// A reply that we cannot parse without a panic is no proof of anything.
	err = kvstore.Contain(func() error { return read(in) })
	kvstore.LogPanic(s.store.cfg.Log, "reading what memcached "+s.addr+" says", err)
	if err != nil {
		return unreachable(ctx, err)
	}
	return nil
}

// errTooMany is what a server at its limit of connections (-c) says to a new one before
// it closes it. It is no answer to anything: whoever serves connections did not say it.
var errTooMany = fmt.Errorf("server said %q", tooMany)

const tooMany = "ERROR Too many open connections"

// lineReader reads reply lines of at most maxLine bytes.
type lineReader struct {
	conn net.Conn
	buf  []byte
	r    int
}

// line returns the next line without its end; it is valid until the next call.
func (in *lineReader) line() ([]byte, error) {
	for {
		line, n, err := cutLine(in.buf[in.r:])
		if err != nil {
			return nil, err
		}
		if string(line) == tooMany {
			return nil, errTooMany
		}
		if n > 0 {
			in.r += n
			return line, nil
		}
		in.buf = in.buf[:copy(in.buf, in.buf[in.r:])]
		in.r = 0
		got, err := in.conn.Read(in.buf[len(in.buf):cap(in.buf)])
		in.buf = in.buf[:len(in.buf)+got]
		if got == 0 && err != nil {
			return nil, err
		}
	}
}

// maxStats bounds the lines of one stats reply: "stats conns" has a few per
// connection.
const maxStats = 1 << 18

// stats reads "STAT name value" lines up to END.
func (in *lineReader) stats(each func(name, value string)) error {
	for range maxStats {
		line, err := in.line()
		if err != nil {
			return err
		}
		if string(line) == "END" {
			return nil
		}
		rest, ok := bytes.CutPrefix(line, []byte("STAT "))
		if !ok {
			return &serverError{string(line)}
		}
		name, value, _ := strings.Cut(string(rest), " ")
		each(name, value)
	}
	return errMalformed
}
