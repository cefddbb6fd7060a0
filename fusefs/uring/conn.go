package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/awake"
)

// Commands of enum fuse_uring_cmd.
const (
	cmdRegister       = 1
	cmdCommitAndFetch = 2
)

// EnableParameter switches FUSE over io_uring on for mounts made from then on.
const EnableParameter = "/sys/module/fuse/parameters/enable_uring"

// Handler serves batches. Batch is called on a queue's thread with all requests
// that were ready, and must not block longer than a round trip to the store:
// what takes longer is kept and answered by Entry.Later.
type Handler interface {
	Batch(thread int, entries []*Entry)
}

// Options of Start.
type Options struct {
	// Payload is the size of an entry's payload buffer: at least max_write and
	// at least 8 KiB.
	Payload int
	// Budget bounds the memory of all payload buffers in bytes; the depth of the
	// queues follows from it. 0: 256 MiB.
	Budget int
	// Threads serve the queues; 0: one per CPU that this process may run on.
	Threads int
	// MaxDepth bounds the entries of a queue; 0: 128, what one loop device has.
	MaxDepth int
}

const (
	defaultBudget = 256 << 20
	defaultDepth  = 128
)

// Conn is a FUSE connection served over io_uring.
type Conn struct {
	fd      int
	handler Handler
	threads []*thread
	wg      sync.WaitGroup
	live    atomic.Int32
}

// Start registers the rings on fd, an open descriptor of the FUSE connection
// whose INIT was answered with the io_uring flag, and returns once every queue
// has its entries. fd stays the caller's and must stay open until Wait returns.
func Start(fd int, h Handler, opt Options) (*Conn, error) {
	queues, err := Queues()
	if err != nil {
		return nil, err
	}
	if opt.Budget == 0 {
		opt.Budget = defaultBudget
	}
	if opt.MaxDepth == 0 {
		opt.MaxDepth = defaultDepth
	}
	if opt.Payload < 8<<10 {
		return nil, errors.New("uring: payload below 8 KiB")
	}
	cpus := online(queues)
	n := opt.Threads
	if n == 0 || n > queues {
		n = min(runtime.NumCPU(), queues)
	}
	c := &Conn{fd: fd, handler: h}
	each := deal(cpus, depths(cpus, queues, opt.Budget/opt.Payload, opt.MaxDepth), n)
	ready := make(chan error, n)
	for i := range n {
		t := &thread{c: c, id: i, queues: each[i]}
		c.threads = append(c.threads, t)
		c.wg.Add(1)
		c.live.Add(1)
		go t.run(opt.Payload, ready)
	}
	var first error
	for range n {
		if err := <-ready; err != nil && first == nil {
			first = err
		}
	}
	return c, first
}

// Threads is how many threads serve; Batch is called with 0 to Threads-1.
func (c *Conn) Threads() int { return len(c.threads) }

// Wait returns when the connection is gone and all threads have ended.
func (c *Conn) Wait() { c.wg.Wait() }

type queueSpec struct{ qid, depth int }

// thread is one locked OS thread with its ring.
type thread struct {
	c       *Conn
	id      int
	queues  []queueSpec
	ring    *ring
	entries []*Entry
	batch   []*Entry
	mem     []byte
	event   int            // eventfd: posted is not empty
	posting sync.WaitGroup // those who are about to write to event
	posted  atomic.Pointer[Entry]
	asleep  atomic.Bool // or about to be: see mayFallAsleep
	alive   int         // entries that the kernel or the handler has
	awake   awake.Wait
	gone    bool
}

// eventTag marks completions of the eventfd's poll; entries have their index.
const eventTag = 1 << 63

func (t *thread) run(payload int, ready chan<- error) {
	defer t.c.wg.Done()
	runtime.LockOSThread() // never unlocked: the thread ends with its ring
	err := t.open(payload)
	if err == nil {
		err = t.register()
	}
	ready <- err
	if err != nil {
		t.close()
		return
	}
	t.loop()
	t.close()
}

func (t *thread) open(payload int) error {
	n := 0
	for _, q := range t.queues {
		n += q.depth
	}
	size := 64 // of the submission queue: room for all entries and the eventfd
	for size < n+1 {
		size *= 2
	}
	var err error
	if t.ring, err = newRing(size); err != nil {
		return err
	}
	if t.event, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	const page = 4096
	payload = (payload + page - 1) &^ (page - 1)
	if t.mem, err = unix.Mmap(-1, 0, n*(payload+page), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		return fmt.Errorf("memory for %d entries of %d bytes: %w", n, payload, err)
	}
	headers, payloads := t.mem[:n*page], t.mem[n*page:]
	for _, q := range t.queues {
		for range q.depth {
			i := len(t.entries)
			e := &Entry{t: t, queue: uint16(q.qid), index: i,
				header: headers[i*page : i*page+headerSize], payload: payloads[i*payload : (i+1)*payload : (i+1)*payload]}
			e.iovec = [2]iovec{{unsafe.Pointer(&e.header[0]), headerSize}, {unsafe.Pointer(&e.payload[0]), uint64(payload)}}
			t.entries = append(t.entries, e)
		}
	}
	t.batch = make([]*Entry, 0, n)
	return nil
}

func (t *thread) register() error {
	for _, e := range t.entries {
		s := t.ring.next()
		s.opcode, s.fd, s.off = opURingCmd, int32(t.c.fd), cmdRegister
		s.addr, s.len = uint64(uintptr(unsafe.Pointer(&e.iovec[0]))), 2
		s.userData, s.qid = uint64(e.index), e.queue
	}
	t.alive = len(t.entries)
	t.armEvent()
	if err := t.ring.enter(0); err != nil {
		return err
	}
	// A refused registration completes at once.
	for {
		c, ok := t.ring.pop()
		if !ok {
			return nil
		}
		if c.userData != eventTag && c.res < 0 {
			return fmt.Errorf("FUSE over io_uring: register: %w", unix.Errno(-c.res))
		}
		t.complete(c)
	}
}

func (t *thread) armEvent() {
	s := t.ring.next()
	s.opcode, s.fd, s.opFlags = opPollAdd, int32(t.event), unix.POLLIN
	s.len = pollAddMulti
	s.userData = eventTag
}

// loop serves until the connection is gone and every entry came back.
func (t *thread) loop() {
	for t.alive > 0 {
		if len(t.batch) > 0 {
			b := t.batch
			t.c.handler.Batch(t.id, b)
			t.batch = b[:0]
		}
		t.collectPosted()
		if t.alive == 0 {
			break
		}
		if err := t.await(); err != nil {
			return // the ring is broken: closing it fails what is in flight
		}
		for {
			c, ok := t.ring.pop()
			if !ok {
				break
			}
			t.complete(c)
		}
	}
}

// await commits the replies and returns once there is something to serve.
func (t *thread) await() error {
	err := t.ring.enter(0)
	if err != nil || t.ring.ready() > 0 {
		return err
	}
	if t.awake.ForWork(func() bool {
		if !t.ring.due() && t.posted.Load() == nil {
			return false
		}
		err = t.ring.enter(0)
		return err != nil || t.ring.ready() > 0 || t.posted.Load() != nil
	}) {
		return err
	}
	if t.mayFallAsleep() {
		began := time.Now()
		err = t.ring.enter(1)
		t.awake.Slept(time.Since(began))
	}
	t.asleep.Store(false)
	return err
}

// mayFallAsleep says that nothing was posted. Either post sees that the thread is
// asleep, and writes to event, or the thread sees here what was posted.
func (t *thread) mayFallAsleep() bool {
	t.asleep.Store(true)
	return t.posted.Load() == nil
}

func (t *thread) complete(c cqe) {
	if c.userData == eventTag {
		var b [8]byte
		_, _ = unix.Read(t.event, b[:])
		if c.flags&cqeMore == 0 && !t.gone {
			t.armEvent()
		}
		return
	}
	e := t.entries[c.userData]
	switch {
	case c.res == 0:
		e.take()
		t.batch = append(t.batch, e)
	case c.res == -int32(unix.EAGAIN) || c.res == -int32(unix.EINTR):
		t.commitEntry(e)
	default: // ENOTCONN: unmounted or aborted
		t.gone = true
		t.alive--
	}
}

func (t *thread) commitEntry(e *Entry) {
	s := t.ring.next()
	if s == nil {
		// The queue has room for all entries, so this is what enter left behind.
		_ = t.ring.enter(0)
		s = t.ring.next()
	}
	s.opcode, s.fd, s.off = opURingCmd, int32(t.c.fd), cmdCommitAndFetch
	s.userData, s.qid, s.commitID = uint64(e.index), e.queue, e.commit
}

// post hands an answered entry to its thread: a lock-free stack, and a wake-up when it
// was empty and the thread sleeps; awake it looks before it sleeps.
func (t *thread) post(e *Entry) {
	t.posting.Add(1)
	defer t.posting.Done()
	for {
		head := t.posted.Load()
		e.next = head
		if t.posted.CompareAndSwap(head, e) {
			if head == nil && t.asleep.Load() {
				one := [8]byte{1}
				_, _ = unix.Write(t.event, one[:])
			}
			return
		}
	}
}

func (t *thread) collectPosted() {
	for e := t.posted.Swap(nil); e != nil; {
		next := e.next
		e.next = nil
		t.commitEntry(e)
		e = next
	}
}

func (t *thread) close() {
	if t.alive > 0 {
		// The ring broke. The handler has entries, or the kernel writes to them: their
		// memory and the eventfd stay.
		if t.ring != nil {
			_ = unix.Close(t.ring.fd)
		}
		return
	}
	t.posting.Wait()
	if t.ring != nil {
		t.ring.close()
	}
	if t.mem != nil {
		_ = unix.Munmap(t.mem)
	}
	if t.event > 0 {
		_ = unix.Close(t.event)
	}
}
