package memcached

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// Network takes the place of the sockets, so that a simulation decides what travels
// when and what is lost. Everything above the system calls is the real thing.
type Network interface {
	// Dial connects for the control plane. Its LocalAddr is a *net.TCPAddr.
	Dial(ctx context.Context, addr string) (net.Conn, error)
	// Link connects for the data plane, without waiting.
	Link(addr string) (Link, error)
	// Wait returns once something can be received from one of the links, or sent
	// again on one that was full, or d has passed.
	Wait(d time.Duration, links []Link)
	// Jitter returns a random time from 0 up to max.
	Jitter(max time.Duration) time.Duration
}

// Link is a connection of a simulation. One goroutine uses it at a time.
type Link interface {
	// Send takes what there is room for: 0 if it is full.
	Send(b []byte) (int, error)
	// Receive waits for up to wait until something came; 0, nil: nothing did. io.EOF
	// at the end.
	Receive(b []byte, wait time.Duration) (int, error)
	// Close drops the link, as a reset does.
	Close()
	// Port is the local port.
	Port() int
}

func (s *Store) jitter(max time.Duration) time.Duration {
	if n := s.cfg.Network; n != nil {
		return n.Jitter(max)
	}
	return wire.Jitter(max)
}

func (s *server) link() (carrier, error) {
	l, err := s.store.cfg.Network.Link(s.addr)
	if err != nil {
		return nil, err
	}
	return &linkCarrier{l}, nil
}

// linkCarrier is a link as a carrier.
type linkCarrier struct{ Link }

func (w *linkCarrier) send(iov []unix.Iovec) (n int, err error) {
	for i := range iov {
		b := wire.Bytes(&iov[i])
		m, err := w.Send(b)
		if n += m; err != nil {
			return n, err
		}
		if m < len(b) {
			break
		}
	}
	if n == 0 {
		return 0, unix.EAGAIN
	}
	return n, nil
}

func (w *linkCarrier) receive(buf []byte, wait, _ bool) (int, error) {
	d := time.Duration(0)
	if wait {
		d = wire.GraceMin
	}
	n, err := w.Receive(buf, d)
	switch {
	case errors.Is(err, io.EOF):
		return 0, nil
	case err == nil && n == 0:
		return 0, unix.EAGAIN
	}
	return n, err
}

func (w *linkCarrier) receiveVec(iov []unix.Iovec, wait bool) (n int, err error) {
	for i := range iov {
		b := wire.Bytes(&iov[i])
		m, err := w.receive(b, wait && n == 0, false)
		if err != nil {
			if n > 0 {
				return n, nil // it comes again
			}
			return 0, err
		}
		if n += m; m < len(b) {
			break
		}
	}
	return n, nil
}

func (w *linkCarrier) inPlace() bool { return true }
func (w *linkCarrier) more() bool    { return false }
func (w *linkCarrier) hangUp() bool  { w.Close(); return true }
func (w *linkCarrier) port() int     { return w.Port() }

// waitLinks is poll on links.
func (ch *channel) waitLinks(d time.Duration) {
	var links []Link
	var conns []*conn
	for _, c := range ch.active {
		if w, ok := c.carrier.(*linkCarrier); ok && c.pending() && c.state >= proving {
			links, conns = append(links, w.Link), append(conns, c)
		}
	}
	ch.store.cfg.Network.Wait(d, links)
	for _, c := range conns {
		if c.state >= proving {
			c.receive(false)
		}
	}
}
