package fusefs

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/volume"
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

// inflight is which requests are in flight and since when: a table of slots, so
// that nobody has to lock anything to enter or to look.
type inflight struct {
	slots []flight
}

// flight is one slot. What it says of the request is written after it was taken
// and is read by who looks, both atomically; a look that meets a change may mix two
// requests, which a second look at began finds.
type flight struct {
	began atomic.Int64 // of clock; 0: free
	vol   atomic.Pointer[volume.Volume]
	off   atomic.Int64
	meta  atomic.Int64 // bytes shifted left by 8, and the kind; 0: no data
}

func (f *inflight) init() { f.slots = make([]flight, inflightSlots) }

// begin enters a request that is not about data and returns its slot, -1 if none
// was free.
func (f *inflight) begin() int { return f.enter(0, nil, 0, 0) }

// enter is begin for a data request.
func (f *inflight) enter(kind volume.RequestKind, v *volume.Volume, off, n int64) int {
	now := clock()
	i := rand.Uint32()
	for range probes {
		s := &f.slots[i%inflightSlots]
		if s.began.Load() == 0 && s.began.CompareAndSwap(0, now) {
			s.vol.Store(v)
			s.off.Store(off)
			s.meta.Store(n<<8 | int64(kind))
			return int(i % inflightSlots)
		}
		i++
	}
	return -1
}

// end takes it out.
func (f *inflight) end(slot int) {
	if slot >= 0 {
		s := &f.slots[slot]
		s.vol.Store(nil) // keeps no volume alive
		s.began.Store(0)
	}
}

// look returns how many requests are in flight and the age of the oldest.
func (f *inflight) look() (n int, oldest time.Duration) {
	now := clock()
	for i := range f.slots {
		if t := f.slots[i].began.Load(); t != 0 {
			n++
			oldest = max(oldest, time.Duration(now-t))
		}
	}
	return n, oldest
}

// Waiting is a request that is in flight.
type Waiting struct {
	What   string `json:"what"`             // read, write ...; other: opens, looks at names
	Volume string `json:"volume,omitempty"` // of a data request
	Offset int64  `json:"offset_bytes,omitempty"`
	Bytes  int64  `json:"bytes,omitempty"`
	AgeMS  int64  `json:"age_ms"`
	// WaitsFor says what it waits for, as far as can be seen from outside of it.
	WaitsFor string `json:"waits_for,omitempty"`
}

// oldest describes the oldest requests, at most limit of them, older than age.
func (f *inflight) oldest(limit int, age time.Duration) []Waiting {
	now := clock()
	type aged struct {
		began int64
		slot  *flight
	}
	var all []aged
	for i := range f.slots {
		if t := f.slots[i].began.Load(); t != 0 && now-t >= int64(age) {
			all = append(all, aged{t, &f.slots[i]})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return int(a.began/1e6 - b.began/1e6) })
	out := []Waiting{} // not null in JSON
	for _, a := range all[:min(len(all), limit)] {
		w := Waiting{What: "other", AgeMS: (now - a.began) / 1e6}
		v, off, meta := a.slot.vol.Load(), a.slot.off.Load(), a.slot.meta.Load()
		if a.slot.began.Load() != a.began {
			continue // it has ended
		}
		if kind := volume.RequestKind(meta & 0xff); v != nil && int(kind) < opKinds {
			w.What, w.Volume, w.Offset, w.Bytes = opNames[kind], v.Name(), off, meta>>8
			w.WaitsFor = v.WaitsFor(kind, off, meta>>8)
		}
		out = append(out, w)
	}
	return out
}
