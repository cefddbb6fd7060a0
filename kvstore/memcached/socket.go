package memcached

import (
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// carrier takes the place of a socket's own bytes: TLS over it (tls.go), or a
// simulation (network.go). Calls are those on a socket, EAGAIN included.
type carrier interface {
	send(iov []unix.Iovec) (int, error)
	receive(buf []byte, wait, whole bool) (int, error)
	// receiveVec is called only if inPlace.
	receiveVec(iov []unix.Iovec, wait bool) (int, error)
	inPlace() bool
	// more says that there may be something to receive that no poll tells of.
	more() bool
	// hangUp ends what is the carrier's own, and says whether the socket was.
	hangUp() bool
	port() int
}

// The methods below are where a connection touches its socket.

// dial begins a connection; the descriptor becomes writable when it stands.
func (c *conn) dial() (fd int, done bool, err error) {
	switch {
	case c.ch.store.cfg.Network != nil:
		c.carrier, err = c.server.link()
		return -1, true, err
	case !c.server.greets():
		return c.server.where.Dial()
	}
	if c.greet, err = c.server.greet(); err != nil {
		return -1, false, err
	}
	return c.greet.bell, false, nil
}

// connected finishes a dial: ready is false while it is under way.
func (c *conn) connected() (ready bool, err error) {
	switch {
	case c.carrier != nil:
		return true, nil
	case c.greet == nil:
		return wire.Connected(c.fd)
	case !c.greet.rung():
		return false, nil
	}
	fd, w, err := c.greet.take()
	c.fd, c.greet = fd, nil
	if w != nil {
		c.carrier = w
	}
	if err != nil {
		c.state = closed // there is nothing to be closed
	}
	return true, err
}

func (c *conn) sendVec(iov []unix.Iovec) (int, error) {
	if c.carrier != nil {
		return c.carrier.send(iov)
	}
	return wire.Send(c.fd, &c.msg, iov)
}

func (c *conn) recv(buf []byte, wait, whole bool) (int, error) {
	if c.carrier != nil {
		return c.carrier.receive(buf, wait, whole)
	}
	return wire.ReceiveBytes(c.fd, buf, wait, whole)
}

func (c *conn) recvVec(iov []unix.Iovec, wait bool) (int, error) {
	if c.carrier != nil {
		return c.carrier.receiveVec(iov, wait)
	}
	return wire.Receive(c.fd, &c.direct.msg, iov, wait, false)
}

func (c *conn) localPort() int {
	if c.carrier != nil && c.carrier.port() != 0 {
		return c.carrier.port()
	}
	return wire.LocalPort(c.fd)
}

func (c *conn) hangUp() {
	if c.carrier == nil || !c.carrier.hangUp() {
		_ = unix.Close(c.fd)
	}
}
