package uring

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of uapi/linux/io_uring.h.
const (
	setupCQSize       = 1 << 3
	setupSubmitAll    = 1 << 7
	setupTaskrunFlag  = 1 << 9
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featSingleMmap = 1 << 0

	enterGetEvents = 1 << 0

	sqTaskrun = 1 << 2 // in the flags of the submission queue

	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000

	opPollAdd  = 6
	opURingCmd = 46

	pollAddMulti = 1 << 0
	cqeMore      = 1 << 1

	sqeSize = 128
)

type sqringOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, resv1 uint32
	userAddr                                                        uint64
}

type cqringOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, resv1 uint32
	userAddr                                                        uint64
}

type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sqOff                                                                  sqringOffsets
	cqOff                                                                  cqringOffsets
}

// sqe is the 128-byte submission entry with the command area that
// FUSE uses (fuse_uring_cmd_req).
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64 // low half: cmd_op of an uring command
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [8]byte // buf_index, personality, file_index
	cmdFlags uint64  // 80 bytes of command from here on
	commitID uint64
	qid      uint16
	_        [62]byte
}

var _ = [1]struct{}{}[unsafe.Sizeof(sqe{})-sqeSize]

type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ring is one io_uring. Only the thread that made it may use it.
type ring struct {
	fd         int
	mem, sqMem []byte

	sqHead, sqTail *uint32
	sqFlags        *uint32
	sqMask         uint32
	sqes           []sqe
	tail           uint32 // ours, published at submit

	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []cqe
}

// newRing makes a ring with room for entries submissions at a time and twice as
// many completions. It must be called on the thread that will use it.
func newRing(entries int) (*ring, error) {
	p := ringParams{flags: setupSQE128 | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupTaskrunFlag}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", e)
	}
	r := &ring{fd: int(fd)}
	if p.features&featSingleMmap == 0 {
		r.close()
		return nil, fmt.Errorf("io_uring without single mmap: %w", unix.ENOSYS)
	}
	size := max(int(p.sqOff.array+p.sqEntries*4), int(p.cqOff.cqes)+int(p.cqEntries)*int(unsafe.Sizeof(cqe{})))
	var err error
	if r.mem, err = unix.Mmap(r.fd, offSQRing, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		r.close()
		return nil, fmt.Errorf("mmap of io_uring: %w", err)
	}
	if r.sqMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*sqeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		r.close()
		return nil, fmt.Errorf("mmap of io_uring: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.mem[off])) }
	r.sqHead, r.sqTail, r.sqMask = at(p.sqOff.head), at(p.sqOff.tail), *at(p.sqOff.ringMask)
	r.sqFlags = at(p.sqOff.flags)
	r.cqHead, r.cqTail, r.cqMask = at(p.cqOff.head), at(p.cqOff.tail), *at(p.cqOff.ringMask)
	r.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&r.sqMem[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&r.mem[p.cqOff.cqes])), p.cqEntries)
	array := unsafe.Slice(at(p.sqOff.array), p.sqEntries)
	for i := range array {
		array[i] = uint32(i)
	}
	r.tail = *r.sqTail
	return r, nil
}

// next returns a cleared submission entry; nil if the queue is full.
func (r *ring) next() *sqe {
	if r.tail-atomic.LoadUint32(r.sqHead) == uint32(len(r.sqes)) {
		return nil
	}
	s := &r.sqes[r.tail&r.sqMask]
	*s = sqe{}
	r.tail++
	return s
}

// pending is how many submissions wait for the next enter.
func (r *ring) pending() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// enter submits what next gave out and waits for at least wait completions.
func (r *ring) enter(wait int) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	for {
		n := r.pending()
		// A wait parks this thread; Syscall6 lets the scheduler go on without it.
		// Without a wait it returns at once, and telling the scheduler costs more.
		var e syscall.Errno
		if wait > 0 {
			_, _, e = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), uintptr(wait), enterGetEvents, 0, 0)
		} else {
			_, _, e = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, enterGetEvents, 0, 0)
		}
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			if wait == 0 || r.ready() > 0 {
				return nil
			}
		case unix.EAGAIN, unix.EBUSY:
			return nil // reap first, then come again
		default:
			return fmt.Errorf("io_uring_enter: %w", e)
		}
	}
}

// ready is how many completions wait to be reaped.
func (r *ring) ready() int { return int(atomic.LoadUint32(r.cqTail) - *r.cqHead) }

// due says whether there is something to fetch: completions, or work that the
// kernel turns into completions at the next enter.
func (r *ring) due() bool {
	return r.ready() > 0 || atomic.LoadUint32(r.sqFlags)&sqTaskrun != 0
}

// pop returns the next completion.
func (r *ring) pop() (cqe, bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return cqe{}, false
	}
	c := r.cqes[head&r.cqMask]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

func (r *ring) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	if r.sqMem != nil {
		_ = unix.Munmap(r.sqMem)
	}
	_ = unix.Close(r.fd)
}
