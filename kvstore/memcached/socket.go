package memcached

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Data connections are raw descriptors, never net.Conn: a locked worker thread
// that waits in Go's netpoller is woken through another thread, which was
// measured to cost 10 ms and more at the 99th percentile.
//
// The system calls below are announced to the Go scheduler (Syscall, not
// RawSyscall): a call that blocks for longer than some 20 us loses its P to other
// goroutines, and a stop-the-world never waits for a silent server.

// slice is how long one blocking wait lasts at most. It bounds how late a
// cancelled context is noticed.
const slice = 100 * time.Millisecond

// resolve returns the socket address of a server.
func resolve(ctx context.Context, network, addr string) (unix.Sockaddr, error) {
	if network == "unix" {
		return &unix.SockaddrUnix{Name: addr}, nil
	}
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	// IPv4 first: "localhost" gives both, and memcached's default listens on both.
	for _, ip := range ips {
		if v4 := ip.IP.To4(); v4 != nil {
			return &unix.SockaddrInet4{Port: port, Addr: [4]byte(v4)}, nil
		}
	}
	for _, ip := range ips {
		if v6 := ip.IP.To16(); v6 != nil {
			sa := &unix.SockaddrInet6{Port: port, Addr: [16]byte(v6)}
			if ip.Zone != "" {
				ifi, err := net.InterfaceByName(ip.Zone)
				if err != nil {
					return nil, err
				}
				sa.ZoneId = uint32(ifi.Index)
			}
			return sa, nil
		}
	}
	return nil, fmt.Errorf("%s has no address", host)
}

// A name is looked up again after so many dials in a row that led to nothing, and
// not more often than this. Only the address changes: the sentinel still proves
// who is there.
const (
	resolveAfter = 4
	resolvePause = 5 * time.Second
)

// resolveAgain begins to look up the server's name, unless that was done lately.
func (s *server) resolveAgain() {
	now := int64(time.Since(epoch))
	last := s.resolved.Load()
	if s.network == "unix" || now-last < int64(resolvePause) || !s.resolved.CompareAndSwap(last, now) {
		return
	}
	s.help(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, resolvePause)
		defer cancel()
		if sa, err := resolve(ctx, s.network, s.addr); err == nil {
			s.sockaddr.Store(&sa)
		}
	})
}

// dial begins a connection without waiting for it. done says that it stands
// already (unix sockets).
func dial(sa unix.Sockaddr) (fd int, done bool, err error) {
	// Connect writes into the address that it is given: each dial has a copy.
	family := unix.AF_UNIX
	switch a := sa.(type) {
	case *unix.SockaddrUnix:
		sa = &unix.SockaddrUnix{Name: a.Name}
	case *unix.SockaddrInet4:
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: a.Port, Addr: a.Addr}
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: a.Port, ZoneId: a.ZoneId, Addr: a.Addr}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, false, err
	}
	if err := tune(fd, family); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	err = unix.Connect(fd, sa)
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, err == nil, nil
}

func tune(fd, family int) error {
	// Receives may block, but only for graceMin (SO_RCVTIMEO): it saves the poll
	// before each of them. Sends never block (MSG_DONTWAIT).
	tv := unix.NsecToTimeval(int64(graceMin))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	if family == unix.AF_UNIX {
		// The default of 208 KiB holds 50 blocks; more lets a batch leave in
		// one call. The kernel caps it silently.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	// Closing with RST: the server must not go on with what is buffered for a
	// worker that gave up.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	for _, o := range [][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
	} {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			return err
		}
	}
	return nil
}

// connected finishes a dial once the descriptor is writable.
func connected(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return unix.SetNonblock(fd, false)
}

// wire takes the place of a socket's own bytes: TLS over it (tls.go), or a
// simulation (network.go). Calls are those on a socket, EAGAIN included.
type wire interface {
	send(iov []unix.Iovec) (int, error)
	receive(buf []byte, wait, whole bool) (int, error)
	// receiveVec is called only if inPlace.
	receiveVec(iov []unix.Iovec, wait bool) (int, error)
	inPlace() bool
	// more says that there may be something to receive that no poll tells of.
	more() bool
	// hangUp ends what is the wire's own, and says whether the socket was.
	hangUp() bool
	port() int
}

// The methods below are where a connection touches its socket.

// dial begins a connection; the descriptor becomes writable when it stands.
func (c *conn) dial() (fd int, done bool, err error) {
	switch {
	case c.ch.store.cfg.Network != nil:
		c.wire, err = c.server.link()
		return -1, true, err
	case !c.server.greets():
		return dial(*c.server.sockaddr.Load())
	}
	if c.greet, err = c.server.greet(); err != nil {
		return -1, false, err
	}
	return c.greet.bell, false, nil
}

// connected finishes a dial.
func (c *conn) connected() error {
	switch {
	case c.wire != nil:
		return nil
	case c.greet == nil:
		return connected(c.fd)
	}
	fd, w, err := c.greet.take()
	c.fd, c.greet = fd, nil
	if w != nil {
		c.wire = w
	}
	if err != nil {
		c.state = closed // there is nothing to be closed
	}
	return err
}

func (c *conn) sendVec(iov []unix.Iovec) (int, error) {
	if c.wire != nil {
		return c.wire.send(iov)
	}
	return sendVec(c.fd, &c.msg, iov)
}

func (c *conn) recv(buf []byte, wait, whole bool) (int, error) {
	if c.wire != nil {
		return c.wire.receive(buf, wait, whole)
	}
	return receive(c.fd, buf, wait, whole)
}

func (c *conn) recvVec(iov []unix.Iovec, wait bool) (int, error) {
	if c.wire != nil {
		return c.wire.receiveVec(iov, wait)
	}
	return receiveVec(c.fd, &c.direct.msg, iov, wait)
}

func (c *conn) localPort() int {
	if c.wire != nil && c.wire.port() != 0 {
		return c.wire.port()
	}
	return localPort(c.fd)
}

func (c *conn) hangUp() {
	if c.wire == nil || !c.wire.hangUp() {
		_ = unix.Close(c.fd)
	}
}

// localPort returns the port of our end, 0 on a unix socket.
func localPort(fd int) int {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// sendVec sends without blocking; unix.SendmsgBuffers would allocate.
func sendVec(fd int, msg *unix.Msghdr, iov []unix.Iovec) (int, error) {
	msg.Iov = &iov[0]
	msg.SetIovlen(len(iov))
	for {
		n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(msg)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// receive reads what is there. With wait it blocks for a slice at most. EAGAIN:
// nothing came. unix.Recvfrom would allocate an address.
// With whole it waits until buf is full, or for a slice.
func receive(fd int, buf []byte, wait, whole bool) (int, error) {
	flags := unix.MSG_DONTWAIT
	if wait {
		flags = 0
	}
	if whole {
		flags = unix.MSG_WAITALL
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])),
			uintptr(len(buf)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			// Go's preemption signals; the slice begins again, which is why the
			// caller looks at the clock and does not count slices.
			if wait {
				return 0, unix.EAGAIN
			}
		default:
			return 0, errno
		}
	}
}

// epoch is some time before anything began: times that are compared must not go by
// a clock that can be set.
var epoch = time.Now().Add(-time.Hour)
