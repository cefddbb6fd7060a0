package devfuse

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/uring"
)

const (
	page         = 4096
	inHeader     = uring.InHeaderSize // struct fuse_in_header
	outHeader    = 16                 // struct fuse_out_header
	hotArgs      = 40                 // struct fuse_read_in, struct fuse_write_in
	requestStart = page - inHeader - hotArgs
)

// Entry is one request and the memory for it and its reply. From the call of
// Handler.Batch until its reply it belongs to the handler.
//
// A request is read to such a place that the data of a WRITE begins on a page, and
// the header of a reply goes just before the data of a READ, which is received on
// a page as well: each way is one piece of memory.
type Entry struct {
	t    *thread
	fd   int    // the clone that the request was read from
	n    int    // its length in bytes, headers included
	mem  []byte // one page before, the payload after it
	next *Entry // in the list of entries that came back
	// large: most of mem was touched, and is resident until it is unmapped.
	large bool
}

// largeEntry is from how many bytes a request or reply is large.
const largeEntry = 64 << 10

func newEntry(t *thread, payload int) (*Entry, error) {
	mem, err := unix.Mmap(-1, 0, page+payload, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return &Entry{t: t, mem: mem}, nil
}

func (e *Entry) free() { _ = unix.Munmap(e.mem) }

// room is where a request is read to.
func (e *Entry) room() []byte { return e.mem[requestStart:] }

// Raw is the request as the kernel sent it.
func (e *Entry) Raw() []byte { return e.mem[requestStart : requestStart+e.n] }

// In returns the request's header.
func (e *Entry) In() *uring.InHeader {
	return (*uring.InHeader)(unsafe.Pointer(&e.mem[requestStart]))
}

// Args returns the fixed arguments of a READ or WRITE; less than 40 bytes if the
// request is shorter than it should be.
func (e *Entry) Args() []byte {
	return e.mem[requestStart+inHeader : min(page, requestStart+e.n)]
}

// Payload returns the data of a WRITE.
func (e *Entry) Payload() []byte { return e.mem[page:max(page, requestStart+e.n)] }

// Buffer returns the whole payload buffer, for the reply of a READ.
func (e *Entry) Buffer() []byte { return e.mem[page:] }

// Reply answers with the first n bytes of Buffer, or, if errno is not 0, with an
// error (a positive errno). During Batch only; see Later. It ends the handler's
// ownership.
func (e *Entry) Reply(errno, n int) {
	e.send(errno, n)
	e.t.recycle(e)
}

// Later answers as Reply does, from any goroutine, for an entry that Batch kept.
func (e *Entry) Later(errno, n int) {
	e.send(errno, n)
	e.t.giveBack(e)
}

// LaterRaw answers with a reply that has its header, as go-fuse makes them; with
// nothing if it is empty (FORGET). From any goroutine.
func (e *Entry) LaterRaw(reply []byte) {
	e.large = e.large || e.n >= largeEntry
	if len(reply) > 0 {
		write(e.fd, reply)
	}
	e.t.giveBack(e)
}

// send writes the reply. Errors are not for us: the request was given up
// (ENOENT) or the connection is gone (ENODEV).
func (e *Entry) send(errno, n int) {
	e.large = e.large || max(n, e.n) >= largeEntry
	if errno != 0 {
		n = 0
	}
	unique := e.In().Unique // before it is written over
	out := e.mem[page-outHeader : page+n]
	binary.NativeEndian.PutUint32(out[0:], uint32(len(out)))
	binary.NativeEndian.PutUint32(out[4:], uint32(int32(-errno)))
	binary.NativeEndian.PutUint64(out[8:], unique)
	write(e.fd, out)
}

// write does not tell the scheduler: the kernel copies and wakes, and does not wait.
func write(fd int, b []byte) {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if e != unix.EINTR {
			return
		}
	}
}
