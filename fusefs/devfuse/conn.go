package devfuse

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/awake"
)

// Handler serves batches. Batch is called on a thread with all requests that were
// ready, and must not block longer than a round trip to the store: what takes
// longer is kept and answered by Entry.Later.
type Handler interface {
	Batch(thread int, entries []*Entry)
}

// Options of Start.
type Options struct {
	// Payload is the size in bytes of the largest WRITE and READ, and of the largest
	// request of any other kind.
	Payload int
	// Threads read requests; 0: one per CPU, at most 16. One, if the connection
	// cannot be cloned.
	Threads int
	// Batch bounds the requests of a batch; 0: 32.
	Batch int
}

const (
	// maxThreads: all of them take from one queue of the kernel with one lock.
	maxThreads = 16
	// defaultBatch leaves something to the other threads.
	defaultBatch = 32
	// kept is how many entries without work a thread keeps, keptLarge how many of
	// them may be large: a burst of large requests does not hold memory for ever.
	kept      = 256
	keptLarge = 32
	// minPayload: the kernel refuses smaller buffers (FUSE_MIN_READ_BUFFER).
	minPayload = 8 << 10
)

// Conn is a FUSE connection that is read from /dev/fuse.
type Conn struct {
	fd      int
	handler Handler
	payload int
	batch   int
	threads []*thread
	wg      sync.WaitGroup
	failed  atomic.Pointer[error]
}

// ReadInit waits for a connection's first request and answers it with what serve
// returns: INIT, before Start.
func ReadInit(fd int, serve func(request []byte) (reply []byte, err error)) error {
	buf := make([]byte, page+minPayload)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EAGAIN: // it was passed to us like this
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			continue
		case err == unix.EINTR || err == unix.ENOENT:
			continue
		case err != nil:
			return fmt.Errorf("reading the first request of the kernel: %w", err)
		}
		reply, err := serve(buf[:n])
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, reply); err != nil {
			return fmt.Errorf("answering the first request of the kernel: %w", err)
		}
		return nil
	}
}

// Start begins to read requests from fd, an open descriptor of a connection whose
// INIT was answered. fd stays the caller's and must stay open until Wait returns.
func Start(fd int, h Handler, opt Options) (*Conn, error) {
	n := Threads(opt.Threads)
	c := &Conn{fd: fd, handler: h, payload: (max(opt.Payload, minPayload) + page - 1) &^ (page - 1), batch: opt.Batch}
	if c.batch <= 0 {
		c.batch = defaultBatch
	}
	for i := range n {
		t, err := c.newThread(i)
		if err != nil && i > 0 {
			break // few descriptors: fewer threads do
		}
		if err != nil {
			t, err = c.lone()
		}
		if err != nil {
			return nil, err
		}
		c.threads = append(c.threads, t)
		if t.waiting < 0 {
			break
		}
	}
	for _, t := range c.threads {
		c.wg.Add(1)
		go t.run()
	}
	return c, nil
}

// Threads is how many threads Start makes at most if it is asked for n.
func Threads(n int) int {
	if n <= 0 {
		n = runtime.NumCPU()
	}
	return min(n, maxThreads)
}

// Threads is how many threads serve; Batch is called with 0 to Threads-1.
func (c *Conn) Threads() int { return len(c.threads) }

// Wait returns when the connection is gone and every entry came back.
func (c *Conn) Wait() { c.wg.Wait() }

// Err is why a thread ended, other than that the connection is gone; nil after a
// plain end.
func (c *Conn) Err() error {
	if e := c.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// Invalidate makes the kernel ask again for the attributes of a node, and drop the
// cached pages of n bytes at off (n 0: to the end; off negative: none)
// (FUSE_NOTIFY_INVAL_INODE). It may wait for the inode's lock: never call it from
// Batch.
func Invalidate(fd int, node uint64, off, n int64) error {
	var b [outHeader + 24]byte
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], 2) // FUSE_NOTIFY_INVAL_INODE
	binary.NativeEndian.PutUint64(b[outHeader:], node)
	binary.NativeEndian.PutUint64(b[outHeader+8:], uint64(off))
	binary.NativeEndian.PutUint64(b[outHeader+16:], uint64(n))
	_, err := unix.Write(fd, b[:])
	return err
}

// clone opens another descriptor of the connection.
func (c *Conn) clone(flags int) (int, error) {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", device, err)
	}
	if err := unix.IoctlSetPointerInt(fd, fuseDevIocClone, c.fd); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("cloning the FUSE connection: %w", err)
	}
	return fd, nil
}

// device is another file in tests of connections that cannot be cloned.
var device = "/dev/fuse"

// fuseDevIocClone is _IOR(229, 0, uint32_t) of uapi/linux/fuse.h.
const fuseDevIocClone = 2<<30 | 4<<16 | 229<<8

// thread is one locked OS thread that reads.
type thread struct {
	c  *Conn
	id int
	// waiting is the clone to wait on, ready the one that never waits. Without
	// clones waiting is -1, and ready is the caller's.
	waiting, ready int

	batch []*Entry
	free  []*Entry // without work
	back  atomic.Pointer[Entry]
	out   sync.WaitGroup // entries that the handler has
	awake awake.Wait
	gone  bool
}

func (c *Conn) newThread(id int) (*thread, error) {
	waiting, err := c.clone(0)
	if err != nil {
		return nil, err
	}
	ready, err := c.clone(unix.O_NONBLOCK)
	if err != nil {
		_ = unix.Close(waiting)
		return nil, err
	}
	return &thread{c: c, id: id, waiting: waiting, ready: ready, batch: make([]*Entry, 0, c.batch)}, nil
}

// lone makes the thread of a connection that cannot be cloned.
func (c *Conn) lone() (*thread, error) {
	if err := unix.SetNonblock(c.fd, true); err != nil {
		return nil, err
	}
	return &thread{c: c, waiting: -1, ready: c.fd, batch: make([]*Entry, 0, c.batch)}, nil
}

func (t *thread) run() {
	defer t.c.wg.Done()
	runtime.LockOSThread() // never unlocked: it ends with the connection
	for t.gather() {
		t.c.handler.Batch(t.id, t.batch)
	}
	t.out.Wait()
	t.close()
}

func (t *thread) close() {
	t.collect()
	for _, e := range t.free {
		e.free()
	}
	t.free = nil
	if t.waiting >= 0 {
		_ = unix.Close(t.waiting)
		_ = unix.Close(t.ready)
	}
}

// gather fills the batch with what is there; it waits until there is something.
// It returns false when the connection is gone.
func (t *thread) gather() bool {
	t.batch = t.batch[:0]
	t.collect()
	if !t.take(t.ready) && !t.gone {
		t.await()
	}
	for len(t.batch) > 0 && len(t.batch) < cap(t.batch) && t.take(t.ready) {
	}
	return len(t.batch) > 0 || !t.gone
}

func (t *thread) await() {
	if t.awake.ForWork(func() bool { return t.take(t.ready) || t.gone }) {
		return
	}
	began := time.Now()
	t.sleep()
	t.awake.Slept(time.Since(began))
}

// sleep waits for a request and takes it if nobody else does first.
func (t *thread) sleep() {
	if t.waiting >= 0 {
		t.take(t.waiting)
		return
	}
	p := []unix.PollFd{{Fd: int32(t.ready), Events: unix.POLLIN}}
	_, _ = unix.Poll(p, -1)
	t.take(t.ready)
}

// take reads one request, if there is one.
func (t *thread) take(fd int) bool {
	e := t.spare()
	if e == nil {
		// No memory for another one: what is there waits until an entry comes back.
		time.Sleep(time.Millisecond)
		t.collect()
		return false
	}
	b := e.room()
	for {
		var n uintptr
		var errno syscall.Errno
		if fd == t.waiting {
			n, _, errno = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		} else {
			n, _, errno = unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		}
		switch errno {
		case 0:
		case unix.EINTR, unix.ENOENT: // a signal; a request that was given up
			continue
		case unix.EAGAIN:
			t.free = append(t.free, e)
			return false
		case unix.ENOMEM, unix.EFAULT: // no memory for the buffer now
			t.free = append(t.free, e)
			time.Sleep(time.Millisecond)
			return false
		default:
			if errno != unix.ENODEV && errno != unix.ECONNABORTED { // unmounted; aborted
				err := error(errno)
				t.c.failed.CompareAndSwap(nil, &err)
			}
			t.gone = true
			t.free = append(t.free, e)
			return false
		}
		if n < inHeader { // not of this kernel
			t.free = append(t.free, e)
			return false
		}
		e.fd, e.n = fd, int(n)
		t.batch = append(t.batch, e)
		t.out.Add(1)
		return true
	}
}

// spare returns an entry without work; nil: there is no memory for one.
func (t *thread) spare() *Entry {
	if n := len(t.free); n > 0 {
		e := t.free[n-1]
		t.free = t.free[:n-1]
		return e
	}
	e, err := newEntry(t, t.c.payload)
	if err != nil {
		return nil
	}
	return e
}

// recycle takes an entry back on the thread itself.
func (t *thread) recycle(e *Entry) {
	t.keep(e)
	t.out.Done()
}

// giveBack hands an entry back to its thread, from anywhere: a lock-free stack,
// which only the thread empties.
func (t *thread) giveBack(e *Entry) {
	for {
		head := t.back.Load()
		e.next = head
		if t.back.CompareAndSwap(head, e) {
			t.out.Done()
			return
		}
	}
}

// collect takes what was given back.
func (t *thread) collect() {
	for e := t.back.Swap(nil); e != nil; {
		next := e.next
		e.next = nil
		t.keep(e)
		e = next
	}
}

// keep makes an entry one without work, or frees its memory.
func (t *thread) keep(e *Entry) {
	if len(t.free) >= kept || e.large && len(t.free) >= keptLarge {
		e.free()
		return
	}
	t.free = append(t.free, e)
}
