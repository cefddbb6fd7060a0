package uring

import (
	"encoding/binary"
	"unsafe"
)

// Layout of the header buffer, struct fuse_uring_req_header of uapi/linux/fuse.h:
// in_out 128 bytes, op_in 128 bytes, ring_ent_in_out 32 bytes.
const (
	headerSize   = 288
	opInOffset   = 128
	entOffset    = 256
	InHeaderSize = 40 // struct fuse_in_header
	outHeaderLen = 16 // struct fuse_out_header
)

// InHeader is struct fuse_in_header, in the kernel's layout.
type InHeader struct {
	Length  uint32
	Opcode  uint32
	Unique  uint64
	NodeID  uint64
	UID     uint32
	GID     uint32
	PID     uint32
	TotalXL uint16 // extension length in 8-byte units
	Padding uint16
}

var _ = [1]struct{}{}[unsafe.Sizeof(InHeader{})-InHeaderSize]

type entHeader struct {
	flags     uint64
	commitID  uint64
	payloadSz uint32
	padding   uint32
	reserved  uint64
}

// Entry is one slot of a queue. From the call of Handler.Batch until its reply it
// belongs to the handler, with its buffers.
type Entry struct {
	t       *thread
	queue   uint16
	index   int
	header  []byte // headerSize bytes
	payload []byte // registered payload
	iovec   [2]iovec
	commit  uint64
	inLen   int
	next    *Entry // in the list of entries that were answered elsewhere
	// Tag is the handler's own: it may hang its request here once and find it
	// again with every request of this entry.
	Tag any
}

type iovec struct {
	base unsafe.Pointer
	len  uint64
}

// In returns the request's header.
func (e *Entry) In() *InHeader { return (*InHeader)(unsafe.Pointer(&e.header[0])) }

// Args returns the operation's fixed arguments (struct fuse_read_in and so on),
// at most 128 bytes.
func (e *Entry) Args() []byte {
	n := int(e.In().Length) - InHeaderSize - e.inLen
	if n < 0 || n > opInOffset {
		n = 0
	}
	return e.header[opInOffset : opInOffset+n]
}

// Payload returns what came with the request after its arguments: the data of a
// WRITE, the name of a LOOKUP.
func (e *Entry) Payload() []byte { return e.payload[:e.inLen] }

// Buffer returns the whole payload buffer, for the reply: the data of a READ, or
// the struct that another operation answers with.
func (e *Entry) Buffer() []byte { return e.payload }

func (e *Entry) ent() *entHeader { return (*entHeader)(unsafe.Pointer(&e.header[entOffset])) }

// take reads what the kernel wrote about the request.
func (e *Entry) take() {
	h := e.ent()
	e.commit = h.commitID
	e.inLen = min(int(h.payloadSz), len(e.payload))
}

// Reply answers with the first n bytes of Buffer, or, if errno is not 0, with an
// error (a positive errno). On the entry's own thread only, i.e. during Batch;
// see Later. The reply is sent with the thread's next enter.
func (e *Entry) Reply(errno int, n int) {
	e.fill(errno, n)
	e.t.commitEntry(e)
}

// Later answers as Reply does, from any goroutine, for an entry that Batch kept.
func (e *Entry) Later(errno int, n int) {
	e.fill(errno, n)
	e.t.post(e)
}

func (e *Entry) fill(errno, n int) {
	unique := e.In().Unique
	if errno != 0 {
		n = 0
	}
	binary.NativeEndian.PutUint32(e.header[0:], uint32(outHeaderLen+n))
	binary.NativeEndian.PutUint32(e.header[4:], uint32(int32(-errno)))
	binary.NativeEndian.PutUint64(e.header[8:], unique)
	h := e.ent()
	h.payloadSz = uint32(n)
}
