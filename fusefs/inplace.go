package fusefs

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/fusefs/devfuse"
	"github.com/kvbfs/kvbfs/fusefs/uring"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Opcodes of uapi/linux/fuse.h that are told apart here.
const (
	opForget      = 2
	opRead        = 15
	opWrite       = 16
	opInterrupt   = 36
	opBatchForget = 42
)

// entry is a request with its buffers, however it came: uring.Entry and
// devfuse.Entry.
type entry interface {
	In() *uring.InHeader
	Args() []byte
	Payload() []byte
	Buffer() []byte
	Reply(errno, n int)
	Later(errno, n int)
	Raw() []byte
	LaterRaw(reply []byte)
}

// inplace serves READ and WRITE of images on the threads that took them: what is
// ready together is one batch of that thread's own worker. All other requests go
// to go-fuse on goroutines of their own.
type inplace struct {
	t     *tree
	d     *dispatcher
	cold  *cold
	lanes []*lane
	calls [][]hotCall // per thread: what its batch is about
}

// hotCall is one READ or WRITE of a batch.
type hotCall struct {
	e    entry
	h    *handle
	req  volume.Request
	slot int // of dispatcher.flying
}

func newInplace(s *Server, threads int) *inplace {
	r := &inplace{t: s.tree, d: s.disp, cold: s.cold}
	for range threads {
		l := newLane(s.disp)
		s.disp.inplace.add(l)
		r.lanes = append(r.lanes, l)
		r.calls = append(r.calls, make([]hotCall, 0, volume.MaxRequests))
	}
	return r
}

// ringHandler and readerHandler are inplace for the one and the other transport.
type (
	ringHandler   struct{ *inplace }
	readerHandler struct{ *inplace }
)

// Batch implements uring.Handler.
func (r ringHandler) Batch(thread int, entries []*uring.Entry) { batch(r.inplace, thread, entries) }

// Batch implements devfuse.Handler.
func (r readerHandler) Batch(thread int, entries []*devfuse.Entry) {
	batch(r.inplace, thread, entries)
}

func batch[E entry](r *inplace, thread int, entries []E) {
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
		switch op := e.In().Opcode; {
		case op == opRead && !r.cold.all:
			calls = r.read(calls, e)
		case op == opWrite && !r.cold.all:
			calls = r.write(calls, e)
		default:
			r.cold.start(e)
		}
		entered++
	}
	full := calls
	calls = nil
	r.serve(thread, full)
}

// serve gives the calls their results and answers them.
func (r *inplace) serve(thread int, calls []hotCall) {
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
		*c = hotCall{} // keeps neither volume nor buffer alive
	}
}

// straggle answers the calls that have their results, and the others when they do.
func (r *inplace) straggle(thread int, w worker, calls []hotCall) {
	r.calls[thread] = make([]hotCall, 0, volume.MaxRequests) // calls belong to the worker
	p := &parted{l: r.lanes[thread]}
	var late []*hotCall
	for i := range calls {
		c := &calls[i]
		switch {
		case c.req.Left:
			p.reqs = append(p.reqs, &c.req)
			late = append(late, c)
		case c.req.Again:
			r.apart(&r.d.bulk, *c)
		default:
			c.e.Reply(r.outcome(c))
			r.d.flying.end(c.slot)
		}
	}
	p.tell = func(i int) {
		late[i].e.Later(r.outcome(late[i]))
		r.d.flying.end(late[i].slot)
	}
	p.move = func(i int) { r.apart(&r.d.bulk, *late[i]) }
	r.lanes[thread].finish(w, p)
}

// apart serves a call that would hold a batch up on a lane of g.
func (r *inplace) apart(g *group, hot hotCall) {
	c := r.d.calls.Get().(*call)
	c.hotCall, c.to = hot, r
	g.pick().post(c)
}

// answer answers a call of apart, which has its result, and lets go of it.
func (r *inplace) answer(c *call) {
	c.e.Later(r.outcome(&c.hotCall))
	r.d.flying.end(c.slot)
	c.hotCall, c.to = hotCall{}, nil // keeps neither volume nor buffer alive
	r.d.calls.Put(c)
}

// outcome is what a call is answered with.
func (r *inplace) outcome(c *hotCall) (errno, size int) {
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
func (r *inplace) enter(calls []hotCall, c hotCall) []hotCall {
	g := r.d.group(c.req.Vol, c.req.Off, c.req.Data)
	if g == &r.d.fast && (!r.d.stragglers.room() || c.req.Kind == volume.Write && c.req.Vol.Unmapped(c.req.Off, int64(len(c.req.Data)))) {
		// It may wait: for a server, if as much is left behind as may be; for a flush,
		// which stores the pages of the map.
		g = &r.d.bulk
	}
	if g != &r.d.fast {
		r.apart(g, c)
		return calls
	}
	return append(calls, c)
}

// read enters a READ, or answers it if there is nothing to ask the volume for.
func (r *inplace) read(calls []hotCall, e entry) []hotCall {
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
		r.cold.start(e)
		return calls
	}
	size := v.Size()
	if off >= uint64(size) || n == 0 {
		e.Reply(0, 0)
		return calls
	}
	n = min(n, size-int64(off))
	return r.enter(calls, hotCall{e: e, h: h, slot: r.d.flying.enter(volume.Read, v, int64(off), n),
		req: volume.Request{Kind: volume.Read, Vol: v, Off: int64(off), Data: e.Buffer()[:n], Reader: uint32(fh)}})
}

// write enters a WRITE; what is not plain goes the way it goes on /dev/fuse.
func (r *inplace) write(calls []hotCall, e entry) []hotCall {
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
		r.cold.start(e)
		return calls
	}
	return r.enter(calls, hotCall{e: e, h: h, slot: r.d.flying.enter(volume.Write, v, int64(off), int64(len(data))),
		req: volume.Request{Kind: volume.Write, Vol: v, Off: int64(off), Data: data}})
}
