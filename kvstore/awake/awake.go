// Package awake lets a thread stay awake for what comes soon. A thread that sleeps
// costs whoever it waits for a wake-up, some 5 to 15 us on a virtual machine, which
// is as much as a small request. So it gives the CPU to whoever wants it
// (sched_yield) and looks again, as halt polling in KVM does.
package awake

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLooks bounds one wait; with nothing else to run it takes some 30 us.
	maxLooks = 100
	// short: had the thread stayed awake, what it waited for would have found it so.
	short = 50 * time.Microsecond
	// longest is how long one wait may last.
	longest = 4 * short
	// taken: whoever had the CPU for longer than that did not do what is waited for. Who
	// yields gives up a whole time slice (kernel/sched/fair.c, yield_task_fair), some 3 ms;
	// who is woken need not wait for its turn as long.
	taken = 500 * time.Microsecond
	// minRest and maxRest are how many waits sleep after that.
	minRest, maxRest = 256, 1 << 16
)

// working is how many threads of this process are at work or stay awake: each needs
// a CPU, and so does whoever it waits for.
var working atomic.Int32

// now is another clock in tests.
var now = time.Now

// half of the CPUs that this process may use.
var half = int32(max(1, min(runtime.NumCPU(), runtime.GOMAXPROCS(0))/2))

// Begin and End enclose what a thread does for others and may wait in, as a batch.
func Begin() { working.Add(1) }

// End is the end of what Begin began.
func End() { working.Add(-1) }

// Working is how many threads are at work or stay awake, for tests.
func Working() int { return int(working.Load()) }

// Wait is what one thread knows of its waits for one kind of thing. How often it
// looks adapts: it grows while things come soon after they are waited for, and
// falls to nothing when they do not. While others want the CPU for long, it sleeps.
// The zero value sleeps at first. One goroutine uses it at a time.
type Wait struct {
	looks int
	rest  int // waits that sleep in any case
	last  int // how many these were at first
}

// ForWork calls look until it says true, and reports whether it did. If not, the
// caller sleeps until there is something to do, and says so by Slept. look must not
// wait.
func (w *Wait) ForWork(look func() bool) bool {
	if w.looks == 0 {
		return false
	}
	Begin()
	defer End()
	return w.look(look, false)
}

// AtWork is ForWork for who waits for somebody else between Begin and End. While
// more than half of the CPUs have a thread at work it does not look.
func (w *Wait) AtWork(look func() bool) bool { return w.look(look, true) }

// Answer receives the answer to a single request: receive(false) looks whether it is
// there, receive(true) sleeps, for as long as it likes. It reports what receive did.
func (w *Wait) Answer(receive func(wait bool) bool) bool {
	if w.AtWork(func() bool { return receive(false) }) {
		return true
	}
	began := time.Now()
	came := receive(true)
	if came {
		w.Slept(time.Since(began))
	}
	return came
}

func (w *Wait) look(look func() bool, polite bool) bool {
	began := now()
	before := began
	for n := w.looks; n > 0 && (!polite || working.Load() <= half); n-- {
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		back := now()
		if back.Sub(before) > taken {
			w.looks, w.last = 0, min(max(2*w.last, minRest), maxRest)
			w.rest = w.last
			return look()
		}
		if back.Sub(began) > longest {
			break // others come and go: asleep it is found sooner
		}
		if look() {
			w.looks = min(w.looks+4, maxLooks)
			w.last -= w.last / 64
			return true
		}
		before = now() // what a look takes is nobody else's time
	}
	w.looks /= 2
	return false
}

// Slept notes that what was waited for came after a sleep of d.
func (w *Wait) Slept(d time.Duration) {
	if w.rest > 0 {
		w.rest--
		return
	}
	if d < short {
		w.looks = min(2*w.looks+8, maxLooks)
	}
}
