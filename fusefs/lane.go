package fusefs

import (
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// lane is the queue of one worker, by flat combining: whoever finds it idle
// leads, serves its own call with all that queued meanwhile, and then hands the
// lead to the oldest call that waits, so that nobody leads for ever.
//
// The head is the whole state: nil is idle; busy is led, with nothing queued; any
// other call is the newest of a list that ends at busy. Calls are only ever
// pushed one by one and taken all together, so reuse of a call cannot confuse the
// list (no ABA).
type lane struct {
	head atomic.Pointer[call]
	load atomic.Int32 // calls that joined and have no result yet
	// stuck is set by the watchdog and cleared when a batch ends: pick avoids it.
	stuck atomic.Bool
	// began is when the batch in progress was handed to the worker, as clock
	// tells; 0: none.
	began atomic.Int64
	_     [64]byte // what follows is written by the leader only

	d        *dispatcher
	counters counters
	// stays: what is left behind for silent servers stays here, since there is nothing
	// else.
	stays bool
	// sole: a batch is of one volume, and all of it waits for what one call waits for: an
	// FSYNC or a FALLOCATE is no operation on blocks, of which some could be left.
	sole bool
	// kicks make the lane's own goroutine lead, which resides there from the first
	// post until the dispatcher is closed. Room for one: only who has the lead gives it.
	// Never closed: where a ring broke, calls may be on their way still.
	kicks  chan struct{}
	reside sync.Once

	// Owned by the leader; handing over the lead passes it on.
	worker     worker // nil: not opened yet, or given up after a panic
	rest, last *call  // oldest and newest of what was taken and not served
	reqs       [volume.MaxRequests]*volume.Request
}

// busy marks the end of a led lane's list.
var busy = new(call)

func newLane(d *dispatcher) *lane { return &lane{d: d, kicks: make(chan struct{}, 1)} }

// do serves c and returns when it has its result.
func (l *lane) do(c *call) {
	l.load.Add(1)
	c.lane = l
	if !l.enter(c) && <-c.wake == served {
		return
	}
	// Not l: the watchdog may have moved the call to another lane.
	c.lane.lead()
}

// post serves c and has it answered (call.to); it returns at once. The lane's own
// goroutine leads, one for all its calls: a goroutine for each would have to be made,
// grow its stack, be scheduled to wait and again to return.
func (l *lane) post(c *call) {
	l.load.Add(1)
	c.lane = l
	if l.enter(c) {
		l.kick()
	}
}

// kick hands the lead to the lane's own goroutine. The caller has it.
func (l *lane) kick() {
	l.reside.Do(func() {
		go func() {
			for {
				select {
				case <-l.kicks:
					l.lead()
				case <-l.d.dismissed:
					return
				}
			}
		}()
	})
	l.kicks <- struct{}{}
}

// enter makes the caller leader if the lane is idle, with c the only call taken;
// else it queues c.
func (l *lane) enter(c *call) (leads bool) {
	for {
		h := l.head.Load()
		if h == nil {
			if l.head.CompareAndSwap(nil, busy) {
				c.next = nil
				l.rest, l.last = c, c
				return true
			}
			continue
		}
		c.next = h
		if l.head.CompareAndSwap(h, c) {
			return false
		}
	}
}

// lead serves one batch, which begins with the oldest call (the caller's own, if one
// waits for it), and hands over.
func (l *lane) lead() {
	own, n := l.gather()
	if left := l.serve(n); left != nil {
		l.straggle(left, own, n)
		return
	}
	done := own
	if own.to == nil {
		done = own.next // the caller knows
	}
	l.load.Add(int32(-n))
	l.handOver()
	// From here on the lane is somebody else's.
	tellAll(done)
}

// tellAll tells the calls of a list that they have their results. Next is read before,
// as a call that was told may be used again.
func tellAll(c *call) {
	for c != nil {
		next := c.next
		c.tell(served)
		c = next
	}
}

// gather takes what is queued and fills reqs with the oldest of it, in the order
// of arrival. It returns them as a list.
func (l *lane) gather() (first *call, n int) {
	if l.head.Load() != busy {
		l.append(chain(l.head.Swap(busy)))
	}
	most := len(l.reqs)
	if l.sole {
		most = min(most, l.sort())
	}
	first = l.rest
	var last *call
	for c := first; c != nil && n < most; c = c.next {
		l.reqs[n] = &c.req
		n++
		last = c
	}
	l.rest = last.next
	last.next = nil
	if l.sole {
		l.putBack() // so that it can be relieved
	}
	return first, n
}

// sort puts the calls of the oldest one's volume before those of others, and returns how
// many they are.
func (l *lane) sort() (n int) {
	vol, c := l.rest.req.Vol, l.rest
	var others, last *call
	l.rest, l.last = nil, nil
	for c != nil {
		next := c.next
		c.next = nil
		switch {
		case c.req.Vol == vol:
			l.append(c, c)
			n++
		case others == nil:
			others, last = c, c
		default:
			last.next, last = c, c
		}
		c = next
	}
	l.append(others, last)
	return n
}

// append puts a list, which may be empty, behind what was taken already.
func (l *lane) append(first, last *call) {
	switch {
	case first == nil:
		return
	case l.rest == nil:
		l.rest = first
	default:
		l.last.next = first
	}
	l.last = last
}

// putBack queues anew what the caller, who leads, has taken and not served, so that
// it can be relieved, before what queued meanwhile.
func (l *lane) putBack() {
	if l.head.Load() != busy {
		l.append(chain(l.head.Swap(busy)))
	}
	c := l.rest
	l.rest, l.last = nil, nil
	for c != nil {
		next := c.next
		l.enter(c) // queues, as the lane is led
		c = next
	}
}

// chain turns a taken list around: oldest first, with nil at its end. The list
// is empty if the watchdog took it first.
func chain(newest *call) (first, last *call) {
	if newest == busy {
		return nil, nil
	}
	last = newest
	for c := newest; c != busy; {
		next := c.next
		c.next = first
		first = c
		c = next
	}
	return first, last
}

// handOver gives the lead to the oldest waiting call, or leaves the lane idle.
func (l *lane) handOver() {
	for l.rest == nil {
		if l.head.CompareAndSwap(busy, nil) {
			return
		}
		l.append(chain(l.head.Swap(busy)))
	}
	l.rest.tell(lead)
}

// serve gives the first n of reqs their results. It always returns. What waits
// for a silent server is left with its worker, which is returned then: the
// requests are marked (Left, and those that another worker has to do Again), and
// straggle has to follow.
func (l *lane) serve(n int) (left worker) {
	reqs := l.reqs[:n]
	now := clock()
	l.began.Store(now)
	l.counters.count(reqs)
	defer l.ended(reqs)
	if l.worker == nil {
		w, err := l.d.worker()
		if err != nil {
			fail(reqs, err)
			return nil
		}
		l.worker = w
	}
	if l.sole {
		l.worker.Do(l.d.ctx, reqs)
		return nil
	}
	if l.worker.Try(l.d.ctx, reqs) {
		return nil
	}
	l.worker.LetGo()
	left, l.worker = l.worker, nil
	return left
}

// ended is deferred by serve: it contains a panic of the worker. All calls of
// the batch fail then, because nobody knows which of them were served, and the
// worker is given up: its state cannot be trusted.
func (l *lane) ended(reqs []*volume.Request) {
	if r := recover(); r != nil {
		l.d.log("panic while serving %d requests: %v\n%s", len(reqs), r, debug.Stack())
		fail(reqs, errPanic)
		go closeQuietly(l.worker)
		l.worker = nil
	}
	l.counters.failed(reqs)
	clear(reqs)
	l.began.Store(0)
	l.stuck.Store(false)
}

func fail(reqs []*volume.Request, err error) {
	for _, r := range reqs {
		r.Err, r.Left, r.Again = err, false, false
	}
}

// closeQuietly closes a worker that panicked and may panic again.
func closeQuietly(w worker) {
	defer func() { _ = recover() }()
	if w != nil {
		_ = w.Close() // it is broken already, and was logged
	}
}

// relieve takes the calls that wait behind a batch that does not return, oldest
// first, and reports how many. Any goroutine may call it. What the leader has
// taken already stays with it.
func (l *lane) relieve() (first, last *call, n int32) {
	for {
		h := l.head.Load()
		if h == nil || h == busy {
			return nil, nil, 0
		}
		if l.head.CompareAndSwap(h, busy) {
			first, last = chain(h)
			for c := first; c != nil; c = c.next {
				n++
			}
			l.load.Add(-n)
			return first, last, n
		}
	}
}

// queued says whether anything waits to be taken. Any goroutine may ask.
func (l *lane) queued() bool {
	h := l.head.Load()
	return h != nil && h != busy
}

// adopt makes a relieved list the queue of l, which the caller leads and which has
// no other: the oldest call of the list leads from here on.
func (l *lane) adopt(first, last *call, n int32) {
	l.load.Add(n)
	l.rest, l.last = first, last
	for c := first; c != nil; c = c.next {
		c.lane = l
	}
	first.tell(lead)
}
