package redis

import (
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// link is a connected socket, plain or with TLS (tls.go). The channel's user alone
// uses it.
type link interface {
	// send sends without blocking and returns how many bytes of the vectors it took;
	// EAGAIN: none.
	send(iov []unix.Iovec) (int, error)
	// unsent says that bytes which send took have not reached the socket: flush.
	unsent() bool
	flush() error
	// receive fills the vectors in their order with what is there, with wait for up
	// to a slice. EAGAIN: nothing came. 0: the other end closed.
	receive(iov []unix.Iovec, wait, whole bool) (int, error)
	// buffered says that receive has more without the socket becoming readable.
	buffered() bool
	close()
}

// plain is a socket itself.
type plain struct {
	fd      int
	out, in unix.Msghdr
}

func (p *plain) send(iov []unix.Iovec) (int, error) { return wire.Send(p.fd, &p.out, iov) }
func (p *plain) unsent() bool                       { return false }
func (p *plain) flush() error                       { return nil }
func (p *plain) buffered() bool                     { return false }
func (p *plain) close()                             { _ = unix.Close(p.fd) }

func (p *plain) receive(iov []unix.Iovec, wait, whole bool) (int, error) {
	return wire.Receive(p.fd, &p.in, iov, wait, whole)
}
