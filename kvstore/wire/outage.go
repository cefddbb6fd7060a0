package wire

import (
	"sync"
	"sync/atomic"
	"time"
)

// When an outage is told: short ones not at all, long ones again and again.
const (
	OutageFirst = time.Second
	outageWarn  = 30 * time.Second
	outageAgain = time.Minute
)

// Outage is the log of one server's silence, shared by all channels. Safe for
// concurrent use; set Name and Log before.
type Outage struct {
	// Name is how the server is called in the log, as "redis 127.0.0.1:6379".
	Name string
	// Log receives one line per event.
	Log func(format string, args ...any)

	on atomic.Bool // read without mu where all is well

	mu     sync.Mutex // guards what follows; a leaf, never held across I/O
	since  time.Time
	logged bool
	next   time.Time // when to warn again
}

// Trouble notes that the server has not answered since the given time.
func (o *Outage) Trouble(since time.Time, why error) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.on.Load() {
		o.on.Store(true)
		o.since, o.logged = since, false
	}
	age := now.Sub(o.since)
	switch {
	case !o.logged && age >= OutageFirst:
		o.logged, o.next = true, o.since.Add(outageWarn)
		o.Log("%s does not answer: %v; waiting and retrying", o.Name, why)
	case o.logged && now.After(o.next):
		o.Log("warning: %s has not answered for %v: %v; still retrying", o.Name, age.Round(time.Second), why)
		o.next = now.Add(outageAgain)
	}
}

// Healthy notes an answer.
func (o *Outage) Healthy() {
	if !o.on.Load() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.on.Swap(false) {
		return
	}
	if o.logged {
		o.Log("%s answers again after %v", o.Name, time.Since(o.since).Round(100*time.Millisecond))
	}
}
