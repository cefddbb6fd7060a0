package fusefs

import (
	"runtime/debug"
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

// finish waits for what a worker of the lane has left and calls done when all of
// reqs have their results.
func (l *lane) finish(w worker, reqs []*volume.Request, done func()) {
	s := &l.d.stragglers
	s.count.Add(1)
	s.wait.Add(1)
	go func() {
		defer s.wait.Done()
		if l.d.finishNow(w, reqs) {
			s.spare(w)
		}
		s.count.Add(-1)
		l.counters.failed(reqs)
		done()
	}()
}

// hold is finish while there is no room: the lane stays led, by the goroutine that
// waits, and counts as stuck when that takes long, so that what queues meanwhile
// goes elsewhere (relieve).
func (l *lane) hold(w worker, reqs []*volume.Request, done func()) {
	s := &l.d.stragglers
	s.wait.Add(1)
	l.putBack()
	l.began.Store(clock())
	go func() {
		defer s.wait.Done()
		if l.d.finishNow(w, reqs) {
			l.worker = w
		}
		l.counters.failed(reqs)
		l.began.Store(0)
		l.stuck.Store(false)
		l.load.Add(int32(-len(reqs)))
		l.handOver()
		done()
	}()
}

// finishNow waits for what a worker has left. It reports false if that panicked: the
// worker is closed then.
func (d *dispatcher) finishNow(w worker, reqs []*volume.Request) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			d.log("panic while finishing %d requests: %v\n%s", len(reqs), r, debug.Stack())
			fail(reqs, errPanic)
			closeQuietly(w)
		}
	}()
	w.Finish(d.ctx)
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
	var reqs []*volume.Request
	var left, done *call
	waits := own.to == nil // the caller, for own
	late := waits && own.req.Left
	for c := own; c != nil; {
		next := c.next
		switch {
		case c.req.Left:
			c.next, left = left, c
			reqs = append(reqs, &c.req)
		case c != own || !waits:
			c.next, done = done, c
		}
		c = next
	}
	l.load.Add(int32(len(reqs) - n))
	if l.d.stragglers.room() {
		l.load.Add(int32(-len(reqs)))
		l.finish(w, reqs, func() { tellAll(left) })
		l.handOver()
	} else {
		l.hold(w, reqs, func() { tellAll(left) })
	}
	tellAll(done)
	if late {
		<-own.wake
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
