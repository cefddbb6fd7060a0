package fusefs

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// worker is what a lane needs of volume.Worker.
type worker interface {
	Do(ctx context.Context, reqs []*volume.Request)
	Try(ctx context.Context, reqs []*volume.Request) bool
	LetGo()
	Close() error
}

// call is one data request on its way. It belongs to the goroutine that waits for
// it (lane.do), or to nobody but its lane (lane.post); next and lane belong to
// whoever leads its lane (or moves it to another one) until the call is told.
type call struct {
	hotCall // of a call that nobody waits for: what is answered; else only req
	next    *call
	lane    *lane
	// to answers the call when it has its result; nil: a goroutine waits for it.
	to   *inplace
	wake chan wake // room for one, so that nobody blocks who wakes it
}

// wake is what a call is told.
type wake uint8

const (
	served wake = iota // the result is there
	lead               // serve the next batch: it begins with your call
)

// tell wakes the goroutine that waits for the call; for a call that nobody waits
// for it answers, or has its lane's own goroutine lead. Told that it is served, the
// call may be in use again at once.
func (c *call) tell(w wake) {
	switch {
	case c.to == nil:
		c.wake <- w
	case w == served:
		c.to.answer(c)
	default:
		c.lane.kick()
	}
}

// slowLanes serve FSYNC and FALLOCATE. Two, so that the flush of a volume does
// not wait for a long discard on another one.
const slowLanes = 2

// maxLanes bounds the lanes of a group, relief lanes included (watch.go). Each
// costs one connection per server.
const maxLanes = 32

// silentLanes serve requests that wait for silent servers.
const silentLanes = 1

// dispatcher brings calls to workers, in batches.
type dispatcher struct {
	ctx  context.Context // of every Worker.Do
	open func(ctx context.Context) (worker, error)
	log  func(format string, args ...any)
	// patience is how long a batch may take before its lane counts as stuck.
	patience time.Duration

	fast, slow group
	bulk       group // large reads and writes
	silent     group // what would wait for a server that is silent: stragglers.go
	inplace    group // one lane per thread of inplace; nobody queues there
	calls      sync.Pool
	flying     inflight
	stragglers stragglers
	dismissed  chan struct{} // closed once, by close: the lanes' own goroutines end
	dismiss    sync.Once
	// lanesMax bounds the lanes of a group: maxLanes, or less.
	lanesMax int
}

// group is a set of lanes that are as good as each other. It only grows.
type group struct {
	lanes atomic.Pointer[[]*lane]
}

func newDispatcher(ctx context.Context, open func(context.Context) (worker, error), workers int, log func(string, ...any)) *dispatcher {
	if workers <= 0 {
		workers = runtime.NumCPU()
	}
	d := &dispatcher{ctx: ctx, open: open, log: log, patience: stuckAfter, lanesMax: maxLanes, dismissed: make(chan struct{})}
	d.stragglers.most = maxStragglers
	d.calls.New = func() any { return &call{wake: make(chan wake, 1)} }
	d.flying.init()
	for range min(workers, maxLanes) {
		d.fast.add(newLane(d))
		d.bulk.add(newLane(d))
	}
	for range slowLanes {
		l := newLane(d)
		l.sole = true
		d.slow.add(l)
	}
	for range silentLanes {
		l := newLane(d)
		l.stays = true
		d.silent.add(l)
	}
	return d
}

// bound keeps the channels of all lanes within a number, as far as that leaves one
// for each: what waits for silent servers waits with less company then.
func (d *dispatcher) bound(channels int) {
	if channels <= 0 {
		return
	}
	// Four groups grow, beside the stragglers; a sixth is left for reapers, opens and
	// closes.
	d.lanesMax = min(maxLanes, max(channels/6, 1))
	d.stragglers.most = min(maxStragglers, int32(channels/6))
}

// do serves one request on a lane of g and returns its result. It allocates
// nothing and takes no lock.
func (d *dispatcher) do(g *group, kind volume.RequestKind, v *volume.Volume, off, n int64, data []byte) error {
	return d.serve(g, volume.Request{Kind: kind, Vol: v, Off: off, N: n, Data: data})
}

func (d *dispatcher) serve(g *group, req volume.Request) error {
	size := req.N
	if req.Data != nil {
		size = int64(len(req.Data))
	}
	slot := d.flying.enter(req.Kind, req.Vol, req.Off, size)
	c := d.calls.Get().(*call)
	c.req = req
	g.pick().do(c)
	err := c.req.Err
	// The pool must not keep the kernel's buffer or the volume alive.
	c.req = volume.Request{}
	d.calls.Put(c)
	d.flying.end(slot)
	return err
}

// bulk is the size in bytes above which a request has lanes of its own: it takes
// several batches of the store, and what shares a lane, or the thread of a ring,
// with it waits for all of them. The hand-over costs some microseconds, the
// request itself a good part of a millisecond.
const bulk = 64 << 10

// group returns where a read or write holds up nothing else.
func (d *dispatcher) group(v *volume.Volume, off int64, data []byte) *group {
	switch {
	case v.Silent(off, int64(len(data))):
		return &d.silent
	case len(data) > bulk:
		return &d.bulk
	}
	return &d.fast
}

// data serves a read or write of the image that is open as fh.
func (d *dispatcher) data(kind volume.RequestKind, v *volume.Volume, off int64, data []byte, fh uint64) error {
	return d.serve(d.group(v, off, data), volume.Request{Kind: kind, Vol: v, Off: off, Data: data, Reader: uint32(fh)})
}

// pick returns an idle lane, else the one with the least calls. A lane that is
// stuck is taken only if all are: the watchdog will move the call on.
func (g *group) pick() *lane {
	lanes := *g.lanes.Load()
	first := int(rand.Uint32N(uint32(len(lanes))))
	var best *lane
	var least int32
	for i := range lanes {
		l := lanes[(first+i)%len(lanes)]
		load := l.load.Load()
		if l.stuck.Load() {
			load += 1 << 24 // more than any queue
		}
		if load == 0 {
			return l
		}
		if best == nil || load < least {
			best, least = l, load
		}
	}
	return best
}

// add makes a lane part of the group. Only one goroutine may add at a time.
func (g *group) add(l *lane) {
	var lanes []*lane
	if old := g.lanes.Load(); old != nil {
		lanes = append(lanes, *old...)
	}
	lanes = append(lanes, l)
	g.lanes.Store(&lanes)
}

// each calls f for all lanes of all groups.
func (d *dispatcher) each(f func(l *lane)) {
	for _, g := range []*group{&d.fast, &d.bulk, &d.slow, &d.silent, &d.inplace} {
		lanes := g.lanes.Load()
		if lanes == nil {
			continue
		}
		for _, l := range *lanes {
			f(l)
		}
	}
}

// close closes the workers. No call may be on its way. It may be called again.
func (d *dispatcher) close() error {
	first := d.stragglers.close()
	d.dismiss.Do(func() { close(d.dismissed) })
	d.each(func(l *lane) {
		if l.worker == nil {
			return
		}
		if err := l.worker.Close(); err != nil && first == nil {
			first = err
		}
		l.worker = nil
	})
	return first
}
