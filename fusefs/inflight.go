package fusefs

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// epoch makes clock a small number, and monotonic.
var epoch = time.Now()

// clock is a monotonic time in nanoseconds, never 0.
func clock() int64 { return int64(time.Since(epoch)) + 1 }

// inflightSlots is the number of requests whose age is known at one time: the
// queue depth of 32 volumes. Requests beyond are served but not seen by Status.
const inflightSlots = 4096

// probes is how many slots a request looks at before it goes without one.
const probes = 64

// inflight is when each request in flight began: a table of stamps, so that
// nobody has to lock anything to enter or to look.
type inflight struct {
	slots []atomic.Int64 // of clock; 0: free
}

func (f *inflight) init() { f.slots = make([]atomic.Int64, inflightSlots) }

// begin enters a request and returns its slot, -1 if none was free.
func (f *inflight) begin() int {
	now := clock()
	i := rand.Uint32()
	for range probes {
		s := int(i % inflightSlots)
		if f.slots[s].Load() == 0 && f.slots[s].CompareAndSwap(0, now) {
			return s
		}
		i++
	}
	return -1
}

// end takes it out.
func (f *inflight) end(slot int) {
	if slot >= 0 {
		f.slots[slot].Store(0)
	}
}

// look returns how many requests are in flight and the age of the oldest.
func (f *inflight) look() (n int, oldest time.Duration) {
	now := clock()
	for i := range f.slots {
		if t := f.slots[i].Load(); t != 0 {
			n++
			oldest = max(oldest, time.Duration(now-t))
		}
	}
	return n, oldest
}
