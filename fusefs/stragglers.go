package fusefs

import (
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Stragglers are requests whose server keeps silent. They leave their lane with
// the worker that they are in, which finishes them on a goroutine of its own,
// while the lane goes on with another worker: a stopped server does not delay
// blocks of other servers. While it stays silent, new requests for it do not even
// enter a lane with others (dispatcher.silent).
//
// Nothing is copied when requests leave: each keeps its buffer, which is the
// kernel's next request's only after the reply.
type stragglers struct {
	count atomic.Int32
	most  int32 // maxStragglers, or less
	wait  sync.WaitGroup

	mu     sync.Mutex // guards what follows; never taken while all servers answer
	spares []worker   // without work
	closed bool
}

// maxStragglers bounds the workers that wait for silent servers, hence their
// connections. With more than that a lane keeps its worker, and takes no other
// batch until that has finished.
const maxStragglers = 16

// maxSpares bounds the workers that are kept for the next time.
const maxSpares = 4

func (s *stragglers) room() bool { return s.count.Load() < s.most }

// worker returns a spare worker, or a new one.
func (d *dispatcher) worker() (worker, error) {
	s := &d.stragglers
	s.mu.Lock()
	if n := len(s.spares); n > 0 {
		w := s.spares[n-1]
		s.spares = s.spares[:n-1]
		s.mu.Unlock()
		return w, nil
	}
	s.mu.Unlock()
	return d.open(d.ctx)
}

// parted is what a batch has left with its worker.
type parted struct {
	l    *lane
	held bool              // l counts it in its load
	reqs []*volume.Request // nil: told
	tell func(i int)       // request i has its result
	move func(i int)       // request i is another worker's from here on
}

// settle tells those that are not left any more.
func (p *parted) settle() {
	for i, r := range p.reqs {
		if r == nil || r.Left {
			continue
		}
		p.l.counters.failed(p.reqs[i : i+1])
		p.reqs[i] = nil
		if p.held {
			p.l.load.Add(-1)
		}
		if r.Again {
			p.move(i)
		} else {
			p.tell(i)
		}
	}
}

// finish waits for what a worker of the lane has left, and tells each when it has its
// result.
func (l *lane) finish(w worker, p *parted) {
	s := &l.d.stragglers
	s.count.Add(1)
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		if l.d.finishNow(w, p) {
			s.spare(w)
		}
		s.count.Add(-1)
		p.settle()
	}()
}

// hold is finish while there is no room, and where what is left stays: the lane stays
// led, by the goroutine that waits, and counts as stuck when that takes long, so that
// what queues meanwhile goes elsewhere (relieve).
func (l *lane) hold(w worker, p *parted) {
	s := &l.d.stragglers
	s.wait.Add(1)
	l.putBack()
	l.began.Store(clock())
	p.held = true
	go func() {
		defer s.wait.Done()
		if l.d.finishNow(w, p) {
			l.worker = w
		}
		l.began.Store(0)
		l.stuck.Store(false)
		l.handOver()
		p.settle()
	}()
}

// finishNow waits for what a worker has left. What has its result before the others is
// told at once, and what would only wait for the others goes to another worker: of the
// servers that were late at the same time, one may be late by a moment and one be dead.
// It reports false if that panicked: the worker is closed then.
func (d *dispatcher) finishNow(w worker, p *parted) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			left := slices.DeleteFunc(slices.Clone(p.reqs), func(q *volume.Request) bool { return q == nil })
			d.log("panic while finishing %d requests: %v\n%s", len(left), r, debug.Stack())
			fail(left, errPanic)
			closeQuietly(w)
		}
	}()
	for !w.Try(d.ctx, nil) {
		w.LetGo()
		p.settle()
	}
	return true
}

// spare keeps a worker for the next time, or closes it.
func (s *stragglers) spare(w worker) {
	s.mu.Lock()
	keep := len(s.spares) < maxSpares && !s.closed
	if keep {
		s.spares = append(s.spares, w)
	}
	s.mu.Unlock()
	if !keep {
		closeQuietly(w)
	}
}

// straggle ends a batch of n calls that begins with own: those that have their
// results are told, whatever becomes of those that are left with w. It returns when
// own has its result, or at once if nobody waits for that.
func (l *lane) straggle(w worker, own *call, n int) {
	p := &parted{l: l}
	var left []*call
	var again, done *call
	waits := own.to == nil // the caller, for own
	late := waits && (own.req.Left || own.req.Again)
	for c := own; c != nil; {
		next := c.next
		switch {
		case c.req.Left:
			left = append(left, c)
			p.reqs = append(p.reqs, &c.req)
		case c.req.Again:
			c.next, again = again, c
		case c != own || !waits:
			c.next, done = done, c
		}
		c = next
	}
	p.tell = func(i int) { left[i].tell(served) }
	p.move = func(i int) { l.d.again(left[i]) }
	l.load.Add(int32(len(left) - n))
	if !l.stays && l.d.stragglers.room() {
		l.load.Add(int32(-len(left)))
		l.finish(w, p)
		l.handOver()
	} else {
		l.hold(w, p)
	}
	tellAll(done)
	for again != nil {
		next := again.next
		l.d.again(again)
		again = next
	}
	if late && <-own.wake == lead {
		own.lane.lead()
	}
}

// again has a call served that a worker has let go, where it holds nobody up.
func (d *dispatcher) again(c *call) {
	l := d.bulk.pick()
	l.load.Add(1)
	c.lane = l
	if l.enter(c) {
		c.tell(lead)
	}
}

// close waits for the stragglers and closes the spare workers.
func (s *stragglers) close() (first error) {
	s.wait.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, w := range s.spares {
		if err := w.Close(); err != nil && first == nil {
			first = err
		}
	}
	s.spares = nil
	return first
}
