package memcached

import (
	"sync"
	"sync/atomic"
	"time"
)

// When an outage is told: short ones not at all, long ones again and again.
const (
	outageFirst = time.Second
	outageWarn  = 30 * time.Second
	outageAgain = time.Minute
)

// outage is the log of one server's silence, shared by all channels.
type outage struct {
	on atomic.Bool // read without mu where all is well

	mu     sync.Mutex // guards what follows; a leaf, never held across I/O
	since  time.Time
	logged bool
	next   time.Time // when to warn again
}

// trouble notes that the server has not answered since the given time.
func (s *server) trouble(since time.Time, why error) {
	o := &s.outage
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.on.Load() {
		o.on.Store(true)
		o.since, o.logged = since, false
	}
	age := now.Sub(o.since)
	switch {
	case !o.logged && age >= outageFirst:
		o.logged, o.next = true, o.since.Add(outageWarn)
		s.store.cfg.Log("memcached %s does not answer: %v; waiting and retrying", s.addr, why)
	case o.logged && now.After(o.next):
		s.store.cfg.Log("warning: memcached %s has not answered for %v: %v; still retrying", s.addr, age.Round(time.Second), why)
		o.next = now.Add(outageAgain)
	}
}

// healthy notes an answer.
func (s *server) healthy() {
	o := &s.outage
	if !o.on.Load() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.on.Swap(false) {
		return
	}
	if o.logged {
		s.store.cfg.Log("memcached %s answers again after %v", s.addr, time.Since(o.since).Round(100*time.Millisecond))
	}
}
