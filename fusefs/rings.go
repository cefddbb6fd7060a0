package fusefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/fusefs/uring"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Transport says how requests come from the kernel.
type Transport string

const (
	// TransportDev reads and writes /dev/fuse: every kernel has it.
	TransportDev Transport = "dev"
	// TransportURing takes requests from per-CPU io_uring queues (Linux 6.14 and
	// newer, root or fuse.enable_uring=Y).
	TransportURing Transport = "uring"
)

// errNoRings: this kernel, or our rights, do not allow FUSE over io_uring.
var errNoRings = errors.New("FUSE over io_uring is not available")

// Opcodes of uapi/linux/fuse.h that rings serve in place.
const (
	opRead  = 15
	opWrite = 16
)

// rings serve READ and WRITE of images on the threads of the queues: what is
// ready together is one batch of that thread's own worker. All other requests go
// to go-fuse on goroutines of their own.
type rings struct {
	t     *tree
	d     *dispatcher
	cold  *fuse.ProtocolServer
	conn  *uring.Conn
	lanes []*lane
	calls [][]ringCall // per thread: what its batch is about
}

// ringCall is one hot request of a batch.
type ringCall struct {
	e    *uring.Entry
	h    *handle
	req  volume.Request
	slot int // of dispatcher.flying
}

// enabling holds other mounts of this process off while the parameter is Y.
var enabling sync.Mutex

// withRings calls f while new mounts are offered io_uring, and puts the
// parameter back: it concerns mounts of others too.
func withRings(f func() error) error {
	enabling.Lock()
	defer enabling.Unlock()
	old, err := os.ReadFile(uring.EnableParameter)
	if err != nil {
		return fmt.Errorf("%w: the kernel is older than 6.14 or built without it", errNoRings)
	}
	if strings.TrimSpace(string(old)) != "Y" {
		if err := os.WriteFile(uring.EnableParameter, []byte("Y"), 0); err != nil {
			return fmt.Errorf("%w: fuse.enable_uring is off, and only root may switch it on", errNoRings)
		}
		defer os.WriteFile(uring.EnableParameter, old, 0)
	}
	return f()
}

// startRings registers the rings: requests wait for that since INIT was answered.
func (s *Server) startRings(opts *fuse.MountOptions) error {
	ks := s.fuse.KernelSettings()
	if ks.Flags64()&fuse.CAP_OVER_IO_URING == 0 {
		return fmt.Errorf("%w: the kernel did not offer it", errNoRings)
	}
	cold, err := uring.ColdServer(s.tree, opts, ks)
	if err != nil {
		return err
	}
	r := &rings{t: s.tree, d: s.disp, cold: cold}
	queues, err := uring.Queues()
	if err != nil {
		return err
	}
	for range queues {
		l := newLane(s.disp)
		s.disp.rings.add(l)
		r.lanes = append(r.lanes, l)
		r.calls = append(r.calls, make([]ringCall, 0, volume.MaxRequests))
	}
	if r.conn, err = uring.Start(s.conn.dup, r, uring.Options{Payload: maxRequest}); err != nil {
		return err
	}
	s.rings = r
	return nil
}

// Batch implements uring.Handler.
func (r *rings) Batch(thread int, entries []*uring.Entry) {
	l := r.lanes[thread]
	calls := r.calls[thread][:0]
	for _, e := range entries {
		if len(calls) == cap(calls) {
			r.serve(l, calls)
			calls = calls[:0]
		}
		switch e.In().Opcode {
		case opRead:
			calls = r.read(calls, e)
		case opWrite:
			calls = r.write(calls, e)
		default:
			go func() { e.Later(uring.Cold(r.cold, e)) }()
		}
	}
	r.serve(l, calls)
}

// serve gives the calls their results and answers them.
func (r *rings) serve(l *lane, calls []ringCall) {
	if len(calls) == 0 {
		return
	}
	for i := range calls {
		l.reqs[i] = &calls[i].req
	}
	l.load.Add(int32(len(calls)))
	l.serve(len(calls))
	l.load.Add(int32(-len(calls)))
	for i := range calls {
		c := &calls[i]
		r.answer(c)
		r.d.flying.end(c.slot)
		*c = ringCall{} // keeps neither volume nor buffer alive
	}
}

func (r *rings) answer(c *ringCall) {
	n := len(c.req.Data)
	what := "read"
	if c.req.Kind == volume.Write {
		what = "write"
	}
	switch {
	case c.req.Err != nil:
		c.e.Reply(int(r.t.ioFailed(what, c.h, c.req.Off, int64(n), c.req.Err)), 0)
	case c.req.Kind == volume.Write:
		out := c.e.Buffer()[:8] // struct fuse_write_out
		binary.NativeEndian.PutUint32(out, uint32(n))
		binary.NativeEndian.PutUint32(out[4:], 0)
		c.e.Reply(0, 8)
	default:
		c.e.Reply(0, n)
	}
}

// read enters a READ, or answers it if there is nothing to ask the volume for.
func (r *rings) read(calls []ringCall, e *uring.Entry) []ringCall {
	in := e.Args()
	if len(in) < 24 { // struct fuse_read_in up to size
		e.Reply(int(fuse.EINVAL), 0)
		return calls
	}
	fh, off, n := binary.NativeEndian.Uint64(in), binary.NativeEndian.Uint64(in[8:]), int64(binary.NativeEndian.Uint32(in[16:]))
	h := r.t.handle(fh)
	if h == nil {
		e.Reply(int(fuse.EBADF), 0)
		return calls
	}
	v := h.vol.Load()
	if h.n == nil || v == nil || n > int64(len(e.Buffer())) {
		go func() { e.Later(uring.Cold(r.cold, e)) }()
		return calls
	}
	size := v.Size()
	if off >= uint64(size) || n == 0 {
		e.Reply(0, 0)
		return calls
	}
	n = min(n, size-int64(off))
	return append(calls, ringCall{e: e, h: h, slot: r.d.flying.begin(),
		req: volume.Request{Kind: volume.Read, Vol: v, Off: int64(off), Data: e.Buffer()[:n]}})
}

// write enters a WRITE; what is not plain goes the way it goes on /dev/fuse.
func (r *rings) write(calls []ringCall, e *uring.Entry) []ringCall {
	in, data := e.Args(), e.Payload()
	if len(in) < 24 || int(binary.NativeEndian.Uint32(in[16:])) != len(data) { // struct fuse_write_in up to size
		e.Reply(int(fuse.EINVAL), 0)
		return calls
	}
	fh, off := binary.NativeEndian.Uint64(in), binary.NativeEndian.Uint64(in[8:])
	h := r.t.handle(fh)
	if h == nil || h.n == nil {
		e.Reply(int(fuse.EBADF), 0)
		return calls
	}
	v := h.vol.Load()
	if v == nil || len(data) == 0 || off > uint64(v.Size()) || int64(len(data)) > v.Size()-int64(off) {
		go func() { e.Later(uring.Cold(r.cold, e)) }()
		return calls
	}
	return append(calls, ringCall{e: e, h: h, slot: r.d.flying.begin(),
		req: volume.Request{Kind: volume.Write, Vol: v, Off: int64(off), Data: data}})
}
