package fusefs

import (
	"sync"
	"time"
)

// watchdog looks after what is stuck: it never acts on a healthy mount.
type watchdog struct {
	once sync.Once
	quit chan struct{}
	gone chan struct{}
	// stuck belongs to the watchdog's goroutine.
	stuck stuckLog
}

const (
	watchEvery = 100 * time.Millisecond
	// watchIdle is how often it looks while nothing is in flight: each look wakes
	// two threads for some 0.4 ms in all, most of what an idle daemon costs.
	watchIdle = 2 * time.Second
	// stuckAfter is how long a batch may take before what queues behind it gets
	// another worker. A slow store (latency of 20 ms, several rounds per batch)
	// stays far below; a server that does not answer is far above.
	stuckAfter = 300 * time.Millisecond
	// deadAfter is how long the oldest request is in flight before we ask whether
	// the kernel still wants its answer.
	deadAfter = time.Second
)

func (w *watchdog) start(s *Server) {
	w.quit, w.gone = make(chan struct{}), make(chan struct{})
	w.stuck.limit = stuckWarn
	go func() {
		defer close(w.gone)
		tick := time.NewTimer(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-w.quit:
				return
			case <-tick.C:
				contained(s.tree.quiet.log, "looking after stuck requests", s.look)
				next := watchIdle
				if n, _ := s.disp.flying.look(); n > 0 {
					next = watchEvery
				}
				tick.Reset(next)
			}
		}
	}()
}

// look is one round of the watchdog.
func (s *Server) look() {
	s.disp.relieve(&s.disp.fast)
	s.disp.relieve(&s.disp.bulk)
	s.disp.relieve(&s.disp.slow)
	s.disp.relieve(&s.disp.silent)
	s.lookForAbort()
	s.watch.stuck.tell(&s.disp.flying, s.opt.Log)
}

func (w *watchdog) stop() {
	w.once.Do(func() { close(w.quit) })
	<-w.gone
}

// relieve gives the calls that wait behind a stuck batch a worker of their own:
// a server that is silent must not delay blocks on other servers.
func (d *dispatcher) relieve(g *group) {
	now := clock()
	for _, l := range *g.lanes.Load() {
		began := l.began.Load()
		if began == 0 || now-began < int64(d.patience) {
			continue
		}
		l.stuck.Store(true)
		// The batch may have ended in between; then the flag must not stay.
		if l.began.Load() != began {
			l.stuck.Store(false)
			continue
		}
		d.relieveLane(g, l)
	}
}

// relieveLane moves what waits in l to a lane that has become idle meanwhile, else to
// a new one. Idle ones first, as each lane keeps a worker, with its buffers and
// connections, for as long as the mount lives.
func (d *dispatcher) relieveLane(g *group, l *lane) {
	if !l.queued() {
		return
	}
	if spare := g.lead(); spare != nil {
		if first, last, n := l.relieve(); n > 0 {
			spare.adopt(first, last, n)
		} else {
			spare.handOver()
		}
		return
	}
	if len(*g.lanes.Load()) >= d.lanesMax {
		return
	}
	if first, last, n := l.relieve(); n > 0 {
		spare := newLane(d)
		spare.stays, spare.sole = l.stays, l.sole
		spare.head.Store(busy)
		spare.adopt(first, last, n)
		g.add(spare)
	}
}

// lead makes the caller leader of an idle lane and returns it, or nil.
func (g *group) lead() *lane {
	for _, l := range *g.lanes.Load() {
		if l.head.CompareAndSwap(nil, busy) {
			return l
		}
	}
	return nil
}

// lookForAbort fails the requests in flight when the kernel does not wait for
// them any more (somebody wrote to the connection's abort file): the transport only
// ends when each of its requests has.
func (s *Server) lookForAbort() {
	if _, oldest := s.disp.flying.look(); oldest < deadAfter {
		return
	}
	if s.conn.dead() && s.ctx.Err() == nil {
		s.opt.Log("the connection was aborted: failing what is in flight")
		s.cancel()
	}
}
