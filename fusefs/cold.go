package fusefs

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/fusefs/devfuse"
)

// cold serves the requests that need no speed: go-fuse parses them and calls the
// tree, only the carriage is ours. Each has a goroutine of its own, as it may take
// long.
type cold struct {
	ps     *fuse.ProtocolServer
	log    func(format string, args ...any)
	kernel fuse.InitIn // what the kernel offered
	all    bool        // READ and WRITE too, so that each is logged (Options.Debug)
	// replies are buffers of the largest reply.
	replies sync.Pool
}

// replySize holds the largest reply: header, fixed part, and data.
const replySize = 16 + 512 + maxRequest

func newCold(fs fuse.RawFileSystem, opts *fuse.MountOptions, log func(string, ...any)) *cold {
	c := &cold{ps: fuse.NewProtocolServer(fs, opts), log: log, all: opts.Debug}
	c.replies.New = func() any { b := make([]byte, replySize); return &b }
	return c
}

// init answers INIT.
func (c *cold) init(request []byte) (reply []byte, err error) {
	if len(request) > int(unsafe.Sizeof(fuse.InHeader{})) {
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&c.kernel)), unsafe.Sizeof(c.kernel))
		copy(raw, request) // older kernels send less of it
	}
	reply = make([]byte, 4096)
	n, st := c.ps.HandleRequest([][]byte{request}, [][]byte{reply})
	if !st.Ok() || n < 16 {
		return nil, fmt.Errorf("the first request of the kernel (%d bytes) cannot be answered: %v", len(request), st)
	}
	if e := int32(binary.NativeEndian.Uint32(reply[4:])); e != 0 {
		return nil, fmt.Errorf("the kernel's FUSE protocol %d.%d is not served here: %v", c.kernel.Major, c.kernel.Minor, fuse.Status(-e))
	}
	return reply[:n], nil
}

// Batch implements devfuse.Handler: what comes on /dev/fuse beside the rings.
func (c *cold) Batch(_ int, entries []*devfuse.Entry) {
	for _, e := range entries {
		c.start(e)
	}
}

// start serves a request; it is answered later.
func (c *cold) start(e entry) {
	switch e.In().Opcode {
	case opForget, opBatchForget: // no store access, no reply
		c.serve(e)
	case opInterrupt:
		go c.interrupt(e)
	default:
		go c.serve(e)
	}
}

// serve answers by go-fuse, which contains panics of the file system; one of its
// own gives EIO.
func (c *cold) serve(e entry) {
	buf := c.replies.Get().(*[]byte)
	reply := *buf
	unique := e.In().Unique
	n := -1
	contained(c.log, "serving a request", func() { n = c.handle(e.Raw(), reply) })
	if n < 0 {
		n = 16
		errno := -int32(fuse.EIO)
		binary.NativeEndian.PutUint32(reply[0:], 16)
		binary.NativeEndian.PutUint32(reply[4:], uint32(errno))
		binary.NativeEndian.PutUint64(reply[8:], unique)
	}
	e.LaterRaw(reply[:n])
	c.replies.Put(buf)
}

// handle returns the length of the reply, negative if there is none to give.
func (c *cold) handle(request, reply []byte) int {
	n, st := c.ps.HandleRequest([][]byte{request}, [][]byte{reply})
	if !st.Ok() {
		return -1
	}
	return n
}

// An interrupt may overtake its request on the way to go-fuse.
const (
	interruptTries = 5
	interruptPause = 10 * time.Millisecond
)

// interrupt passes an INTERRUPT on. What is not known to go-fuse is a READ or
// WRITE, which are never interrupted: no reply, since the kernel would send it
// again and again until that request ends.
func (c *cold) interrupt(e entry) {
	raw := append([]byte(nil), e.Raw()...)
	e.LaterRaw(nil)
	var reply [256]byte
	for range interruptTries {
		n := 0
		contained(c.log, "passing an interrupt on", func() { n = c.handle(raw, reply[:]) })
		if n <= 0 {
			return
		}
		time.Sleep(interruptPause)
	}
}
