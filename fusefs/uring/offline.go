package uring

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offline is a thread with no kernel behind it: tests of a [Handler] give it
// requests byte by byte, also such as no kernel sends, and read the answers. Its
// methods are for one goroutine; entries may be answered by any.
type Offline struct {
	t       *thread
	answers []int // per entry, since its request
}

// NewOffline makes entries with payload buffers of so many bytes.
func NewOffline(entries, payload int) (*Offline, error) {
	// Blocking: Wait sleeps in its read.
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	size := uint32(1)
	for size < 4*uint32(entries) { // room for answers that are one too many
		size *= 2
	}
	r := &ring{fd: -1, sqHead: new(uint32), sqTail: new(uint32), sqMask: size - 1, sqes: make([]sqe, size)}
	o := &Offline{t: &thread{c: &Conn{fd: -1}, ring: r, event: event}, answers: make([]int, entries)}
	for i := range entries {
		e := &Entry{t: o.t, index: i, header: make([]byte, headerSize), payload: make([]byte, payload)}
		o.t.entries = append(o.t.entries, e)
	}
	return o, nil
}

// Request puts a request into entry i as the kernel does. header is struct
// fuse_in_header, args at most 128 bytes; payload is copied, and said is how long
// the kernel says that it is.
func (o *Offline) Request(i int, header [InHeaderSize]byte, args, payload []byte, said uint32) *Entry {
	e := o.t.entries[i]
	clear(e.header)
	copy(e.header, header[:])
	copy(e.header[opInOffset:entOffset], args)
	n := copy(e.payload, payload)
	clear(e.payload[n:max(n, min(int(said), len(e.payload)))])
	h := e.ent()
	h.commitID, h.payloadSz = uint64(i), said
	e.take()
	o.answers[i] = 0
	return e
}

// Wait returns when the first n entries are answered. An entry that was answered
// twice is an error.
func (o *Offline) Wait(n int) error {
	for {
		o.t.collectPosted()
		r, missing := o.t.ring, false
		for ; *r.sqHead != r.tail; *r.sqHead++ {
			o.answers[r.sqes[*r.sqHead&r.sqMask].userData]++
		}
		for i, times := range o.answers[:n] {
			missing = missing || times == 0
			if times > 1 {
				return fmt.Errorf("entry %d was answered %d times", i, times)
			}
		}
		if !missing {
			return nil
		}
		var b [8]byte
		if o.t.mayFallAsleep() {
			if _, err := unix.Read(o.t.event, b[:]); err != nil && err != unix.EINTR {
				return fmt.Errorf("eventfd: %w", err)
			}
		}
		o.t.asleep.Store(false)
	}
}

// Answer returns what entry i was answered with, as the kernel sees it. The data is
// the entry's own.
func (o *Offline) Answer(i int) (unique uint64, errno int, data []byte, err error) {
	e := o.t.entries[i]
	n := e.ent().payloadSz
	if l := binary.NativeEndian.Uint32(e.header); uint64(n) > uint64(len(e.payload)) || l != outHeaderLen+n {
		return 0, 0, nil, fmt.Errorf("the answer says %d bytes in its header and %d bytes of payload", l, n)
	}
	errno = -int(*(*int32)(unsafe.Pointer(&e.header[4])))
	return binary.NativeEndian.Uint64(e.header[8:]), errno, e.payload[:n], nil
}

// Close frees what it has. All entries must be answered.
func (o *Offline) Close() error {
	o.t.posting.Wait() // who posted last may be about to write to it
	return unix.Close(o.t.event)
}
