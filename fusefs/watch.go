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
}

const (
	watchEvery = 100 * time.Millisecond
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
	go func() {
		defer close(w.gone)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-w.quit:
				return
			case <-tick.C:
				s.disp.relieve(&s.disp.fast)
				s.disp.relieve(&s.disp.slow)
				s.lookForAbort()
			}
		}
	}()
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
		if len(*g.lanes.Load()) >= maxLanes {
			continue
		}
		if first, last, n := l.relieve(); n > 0 {
			spare := newLane(d)
			spare.adopt(first, last, n)
			g.add(spare)
		}
	}
}

// lookForAbort fails the requests in flight when the kernel does not wait for
// them any more (somebody wrote to the connection's abort file): go-fuse only
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
