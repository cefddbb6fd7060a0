package rig

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// LongWire is a wire to a server that takes Delay for everything that travels back, as
// Proxy's is, for who measures: it moves pages between sockets by splice(2) and copies
// nothing, as on a real network distance costs no processor of either end. It can do
// nothing else: the end of one side is the end of both, and what is on its way then is
// lost.
type LongWire struct {
	Addr string

	l      net.Listener
	target string
	delay  atomic.Int64 // time.Duration
	log    func(format string, args ...any)
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.TCPConn]bool // guarded by mu
}

// wirePipe is the size of the pipe that holds what is on its way back, in bytes; what
// is more waits in the server's socket.
const wirePipe = 4 << 20

// NewLongWire listens on a free port and forwards to target (host:port), at first
// without delay.
func NewLongWire(t testing.TB, target string) *LongWire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &LongWire{Addr: l.Addr().String(), l: l, target: target, log: t.Logf, conns: map[*net.TCPConn]bool{}}
	w.wg.Add(1)
	go w.accept()
	t.Cleanup(w.close)
	return w
}

// URL is the store's URL by way of the wire.
func (w *LongWire) URL() string { return "memcached://" + w.Addr }

// SetDelay changes the delay of what arrives from now on.
func (w *LongWire) SetDelay(d time.Duration) { w.delay.Store(int64(d)) }

func (w *LongWire) close() {
	w.l.Close()
	w.mu.Lock()
	for c := range w.conns {
		c.Close()
	}
	w.conns = nil
	w.mu.Unlock()
	w.wg.Wait()
}

// add keeps a connection for close; false: the wire is closed.
func (w *LongWire) add(conns ...*net.TCPConn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		if w.conns == nil {
			c.Close()
			continue
		}
		w.conns[c] = true
	}
	return w.conns != nil
}

func (w *LongWire) accept() {
	defer w.wg.Done()
	for {
		c, err := w.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", w.target)
		if err != nil {
			c.Close()
			continue
		}
		client, server := c.(*net.TCPConn), s.(*net.TCPConn)
		if !w.add(client, server) {
			return
		}
		w.wg.Add(2)
		go func() {
			defer w.wg.Done()
			_, _ = server.ReadFrom(client) // splices; ends with either side
			client.Close()
			server.Close()
		}()
		go func() {
			defer w.wg.Done()
			w.back(client, server)
			client.Close()
			server.Close()
		}()
	}
}

// arrival is n bytes in the pipe, to be passed on when they are due.
type arrival struct {
	n   int
	due time.Time
}

// back moves answers through a pipe, each piece at its own time: order and spacing stay.
func (w *LongWire) back(client, server *net.TCPConn) {
	var p [2]int
	if unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return
	}
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, wirePipe); err != nil {
		w.log("the wire is narrower than it should be, a pipe of %d bytes: %v", wirePipe, err)
	}
	queue := make(chan arrival, 4096)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for a := range queue {
			time.Sleep(time.Until(a.due))
			for a.n > 0 {
				n, err := move(client, true, p[0], a.n)
				if a.n -= n; err != nil || n == 0 {
					server.Close() // ends the other half
					for range queue {
					}
					return
				}
			}
		}
	}()
	for {
		n, err := move(server, false, p[1], wirePipe)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		queue <- arrival{n, time.Now().Add(time.Duration(w.delay.Load()))}
	}
	close(queue)
	<-done
	unix.Close(p[0])
	unix.Close(p[1])
}

// move splices up to n bytes between a connection and a pipe's end, waiting for the
// connection. 0 is its end.
func move(c *net.TCPConn, out bool, pipe, n int) (moved int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	try := func(fd uintptr) bool {
		for {
			var m int64
			if out {
				m, err = unix.Splice(pipe, nil, int(fd), nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			} else {
				m, err = unix.Splice(int(fd), nil, pipe, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			}
			moved = int(m)
			if err != unix.EINTR {
				break
			}
		}
		if err != unix.EAGAIN {
			return true
		}
		err = nil
		// The connection is to be waited for, or the pipe is full: the poller cannot tell
		// of the pipe, so a readable connection means to look again a little later.
		if !out && readable(int(fd)) {
			time.Sleep(100 * time.Microsecond)
			err = os.ErrDeadlineExceeded
			return true
		}
		return false
	}
	wait := raw.Read
	if out {
		wait = raw.Write
	}
	if e := wait(try); e != nil {
		return 0, e
	}
	return moved, err
}

func readable(fd int) bool {
	f := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(f, 0)
	return err == nil && n == 1 && f[0].Revents != 0
}
