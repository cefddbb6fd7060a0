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
	// TransportAuto is TransportURing where that is to be had, else TransportDev.
	TransportAuto Transport = "auto"
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
	calls := r.calls[thread][:0]
	entered := 0 // entries that were answered, or are in calls, or elsewhere
	defer func() {
		if p := recover(); p != nil {
			// Not of a worker, whose panics end in lane.serve.
			status := r.t.s.panicked(p)
			for _, e := range entries[entered:] {
				e.Reply(int(status), 0)
			}
			r.serve(thread, calls)
		}
	}()
	for _, e := range entries {
		if len(calls) == cap(calls) {
			full := calls
			calls = nil
			r.serve(thread, full)
			calls = r.calls[thread][:0]
		}
		switch e.In().Opcode {
		case opRead:
			calls = r.read(calls, e)
		case opWrite:
			calls = r.write(calls, e)
		default:
			go r.coldly(e)
		}
		entered++
	}
	full := calls
	calls = nil
	r.serve(thread, full)
}

// coldly serves a request by go-fuse, which contains panics of the file system;
// one of its own gives EIO.
func (r *rings) coldly(e *uring.Entry) {
	errno, n := int(fuse.EIO), 0
	contained(r.t.s.opt.Log, "serving a request", func() { errno, n = uring.Cold(r.cold, e) })
	e.Later(errno, n)
}

// serve gives the calls their results and answers them.
func (r *rings) serve(thread int, calls []ringCall) {
	if len(calls) == 0 {
		return
	}
	l := r.lanes[thread]
	for i := range calls {
		l.reqs[i] = &calls[i].req
	}
	l.load.Add(int32(len(calls)))
	left := l.serve(len(calls))
	l.load.Add(int32(-len(calls)))
	if left != nil {
		r.straggle(thread, left, calls)
		return
	}
	for i := range calls {
		c := &calls[i]
		c.e.Reply(r.outcome(c))
		r.d.flying.end(c.slot)
		*c = ringCall{} // keeps neither volume nor buffer alive
	}
}

// straggle answers the calls that have their results, and the others when they do.
func (r *rings) straggle(thread int, w worker, calls []ringCall) {
	r.calls[thread] = make([]ringCall, 0, volume.MaxRequests) // calls belong to the worker
	var reqs []*volume.Request
	var late []*ringCall
	for i := range calls {
		c := &calls[i]
		if c.req.Left {
			reqs = append(reqs, &c.req)
			late = append(late, c)
			continue
		}
		c.e.Reply(r.outcome(c))
		r.d.flying.end(c.slot)
	}
	r.lanes[thread].finish(w, reqs, func() {
		for _, c := range late {
			c.e.Later(r.outcome(c))
			r.d.flying.end(c.slot)
		}
	})
}

// apart serves a call that would hold a batch up on a goroutine of its own.
//
//go:noinline // or each call of a batch would be allocated
func (r *rings) apart(g *group, c ringCall) {
	r.d.flying.end(c.slot) // serve has one of its own
	go func() {
		c.req.Err = r.d.serve(g, c.req)
		c.e.Later(r.outcome(&c))
	}()
}

// outcome is what a call is answered with.
func (r *rings) outcome(c *ringCall) (errno, size int) {
	n := len(c.req.Data)
	what := "read"
	if c.req.Kind == volume.Write {
		what = "write"
	}
	switch {
	case c.req.Err != nil:
		return int(r.t.ioFailed(what, c.h, c.req.Off, int64(n), c.req.Err)), 0
	case c.req.Kind == volume.Write:
		out := c.e.Buffer()[:8] // struct fuse_write_out
		binary.NativeEndian.PutUint32(out, uint32(n))
		binary.NativeEndian.PutUint32(out[4:], 0)
		return 0, 8
	}
	return 0, n
}

// enter makes a call part of the batch, unless it would hold the batch up.
func (r *rings) enter(calls []ringCall, c ringCall) []ringCall {
	if g := r.d.group(c.req.Vol, c.req.Off, c.req.Data); g != &r.d.fast {
		r.apart(g, c)
		return calls
	}
	return append(calls, c)
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
		go r.coldly(e)
		return calls
	}
	size := v.Size()
	if off >= uint64(size) || n == 0 {
		e.Reply(0, 0)
		return calls
	}
	n = min(n, size-int64(off))
	return r.enter(calls, ringCall{e: e, h: h, slot: r.d.flying.enter(volume.Read, v, int64(off), n),
		req: volume.Request{Kind: volume.Read, Vol: v, Off: int64(off), Data: e.Buffer()[:n], Reader: uint32(fh)}})
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
		go r.coldly(e)
		return calls
	}
	return r.enter(calls, ringCall{e: e, h: h, slot: r.d.flying.enter(volume.Write, v, int64(off), int64(len(data))),
		req: volume.Request{Kind: volume.Write, Vol: v, Off: int64(off), Data: data}})
}
