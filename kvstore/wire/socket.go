package wire

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Resolve returns the socket address of a server: network is "tcp" or "unix",
// addr host:port or a path.
func Resolve(ctx context.Context, network, addr string) (unix.Sockaddr, error) {
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
	// IPv4 first: "localhost" gives both, and servers listen on both by default.
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

// Dial begins a connection without waiting for it. done says that it stands
// already (unix sockets). The caller owns the descriptor.
func Dial(sa unix.Sockaddr) (fd int, done bool, err error) {
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
	tv := unix.NsecToTimeval(int64(GraceMin))
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
	for _, o := range [][3]int{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
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

// Connected finishes a dial: ready is false while it is under way.
func Connected(fd int) (ready bool, err error) {
	pfd := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(pfd[:], 0); n == 0 || err != nil {
		return false, nil // interrupted: asked again
	}
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, err
	}
	if n != 0 {
		return true, syscall.Errno(n)
	}
	return true, unix.SetNonblock(fd, false)
}

// LocalPort returns the port of our end, 0 on a unix socket.
func LocalPort(fd int) int {
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

// Bytes returns the memory of a vector.
func Bytes(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

// Vector appends b, which must not be empty, to iov.
func Vector(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(iov, v)
}

// Cut takes the first n bytes off vectors and returns what is left.
func Cut(iov []unix.Iovec, n int) []unix.Iovec {
	for n > 0 {
		v := &iov[0]
		if n < int(v.Len) {
			rest := Bytes(v)[n:]
			v.Base = &rest[0]
			v.SetLen(len(rest))
			return iov
		}
		n -= int(v.Len)
		iov = iov[1:]
	}
	return iov
}

// Send sends without blocking. msg is scratch memory of the caller:
// unix.SendmsgBuffers would allocate.
func Send(fd int, msg *unix.Msghdr, iov []unix.Iovec) (int, error) {
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

// ReceiveBytes is Receive into one buffer.
func ReceiveBytes(fd int, buf []byte, wait, whole bool) (int, error) {
	// Not unix.Recvfrom, which allocates an address.
	for flags := receiveFlags(wait, whole); ; {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])),
			uintptr(len(buf)), uintptr(flags), 0, 0)
		switch {
		case errno == 0:
			return int(n), nil
		case errno != unix.EINTR:
			return 0, errno
		case wait:
			return 0, unix.EAGAIN // see Receive
		}
	}
}

func receiveFlags(wait, whole bool) int {
	switch {
	case !wait:
		return unix.MSG_DONTWAIT
	case whole:
		return unix.MSG_WAITALL
	}
	return 0
}

// Receive reads what is there into the vectors, in their order. With wait it
// blocks for GraceMin at most, and with whole besides until all of them are full.
// EAGAIN: nothing came. 0: the other end closed.
func Receive(fd int, msg *unix.Msghdr, iov []unix.Iovec, wait, whole bool) (int, error) {
	msg.Iov = &iov[0]
	msg.SetIovlen(len(iov))
	for flags := receiveFlags(wait, whole); ; {
		n, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(msg)), uintptr(flags))
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
