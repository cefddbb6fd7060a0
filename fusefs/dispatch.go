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
	Close() error
}

// call is one data request on its way. It belongs to the goroutine that made it
// but for next and lane, which belong to whoever leads its lane (or moves it to
// another one) until the call is woken.
type call struct {
	req  volume.Request
	next *call
	lane *lane
	wake chan wake // room for one, so that nobody blocks who wakes it
}

// wake says why a call was woken.
type wake uint8

const (
	served wake = iota // the result is there
	lead               // serve the next batch: it begins with your call
)

// slowLanes serve FSYNC and FALLOCATE. Two, so that the flush of a volume does
// not wait for a long discard on another one.
const slowLanes = 2

// maxLanes bounds the lanes of a group, relief lanes included (watch.go). Each
// costs one connection per server.
const maxLanes = 32

// dispatcher brings calls to workers, in batches.
type dispatcher struct {
	ctx  context.Context // of every Worker.Do
	open func(ctx context.Context) (worker, error)
	log  func(format string, args ...any)
	// patience is how long a batch may take before its lane counts as stuck.
	patience time.Duration

	fast, slow group
	rings      group // one lane per thread of the rings; nobody queues there
	calls      sync.Pool
	flying     inflight
}

// group is a set of lanes that are as good as each other. It only grows.
type group struct {
	lanes atomic.Pointer[[]*lane]
}

func newDispatcher(ctx context.Context, open func(context.Context) (worker, error), workers int, log func(string, ...any)) *dispatcher {
	if workers <= 0 {
		workers = runtime.NumCPU()
	}
	d := &dispatcher{ctx: ctx, open: open, log: log, patience: stuckAfter}
	d.calls.New = func() any { return &call{wake: make(chan wake, 1)} }
	d.flying.init()
	for range min(workers, maxLanes) {
		d.fast.add(newLane(d))
	}
	for range slowLanes {
		d.slow.add(newLane(d))
	}
	return d
}

// do serves one request on a lane of g and returns its result. It allocates
// nothing and takes no lock.
func (d *dispatcher) do(g *group, kind volume.RequestKind, v *volume.Volume, off, n int64, data []byte) error {
	slot := d.flying.begin()
	c := d.calls.Get().(*call)
	c.req = volume.Request{Kind: kind, Vol: v, Off: off, N: n, Data: data}
	g.pick().do(c)
	err := c.req.Err
	// The pool must not keep the kernel's buffer or the volume alive.
	c.req = volume.Request{}
	d.calls.Put(c)
	d.flying.end(slot)
	return err
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
	for _, g := range []*group{&d.fast, &d.slow, &d.rings} {
		lanes := g.lanes.Load()
		if lanes == nil {
			continue
		}
		for _, l := range *lanes {
			f(l)
		}
	}
}

// close closes the workers. No call may be on its way.
func (d *dispatcher) close() error {
	var first error
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
