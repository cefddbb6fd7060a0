package fusefs

import (
	"math/bits"
	"strconv"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

const (
	opKinds = int(volume.Provision) + 1
	// sizeClasses: class i holds sizes of (2^(i-1), 2^i] bytes, the last one all
	// that is larger.
	sizeClasses = 33
	// alignClasses: class i holds offsets that are a multiple of 2^i bytes and of
	// no more, the last one (1 MiB) all that are aligned better.
	alignClasses = 21
)

// counters of one lane. Only its leader adds, so the words are never contended;
// they are atomic because Status reads them meanwhile.
type counters struct {
	batches  atomic.Uint64
	requests [opKinds]atomic.Uint64
	bytes    [opKinds]atomic.Uint64
	errors   [opKinds]atomic.Uint64
	sizes    [opKinds][sizeClasses][alignClasses]atomic.Uint64
}

func (c *counters) count(reqs []*volume.Request) {
	c.batches.Add(1)
	for _, r := range reqs {
		k := int(r.Kind)
		if k >= opKinds {
			continue
		}
		n := r.N
		if r.Data != nil {
			n = int64(len(r.Data))
		}
		c.requests[k].Add(1)
		c.bytes[k].Add(uint64(n))
		if r.Kind != volume.Flush {
			c.sizes[k][sizeClass(n)][alignClass(r.Off)].Add(1)
		}
	}
}

func (c *counters) failed(reqs []*volume.Request) {
	for _, r := range reqs {
		if !r.Left && r.Err != nil && int(r.Kind) < opKinds {
			c.errors[r.Kind].Add(1)
		}
	}
}

func sizeClass(n int64) int {
	if n <= 1 {
		return 0
	}
	return min(bits.Len64(uint64(n-1)), sizeClasses-1)
}

func alignClass(off int64) int {
	return min(bits.TrailingZeros64(uint64(off)|1<<(alignClasses-1)), alignClasses-1)
}

// opNames are the words of .stats.
var opNames = [opKinds]string{
	volume.Read: "read", volume.Write: "write", volume.Discard: "discard", volume.Zero: "zero", volume.Flush: "flush",
	volume.Provision: "provision",
}

// opStats is one kind of request in .stats.
type opStats struct {
	Requests uint64 `json:"requests"`
	Bytes    uint64 `json:"bytes"`
	Errors   uint64 `json:"errors"`
	// Sizes: request size (bytes, rounded up to a power of two) to alignment of
	// the offset (the largest power of two that divides it, at most 1 MiB) to
	// count. What is not there is zero.
	Sizes map[string]map[string]uint64 `json:"size_by_alignment,omitempty"`
}

// sum adds up the counters of all lanes.
func (d *dispatcher) sum() (ops map[string]*opStats, requests, batches uint64, lanes int) {
	ops = make(map[string]*opStats)
	d.each(func(l *lane) {
		lanes++
		batches += l.counters.batches.Load()
		for k := 1; k < opKinds; k++ {
			n := l.counters.requests[k].Load()
			requests += n
			if n == 0 {
				continue
			}
			o := ops[opNames[k]]
			if o == nil {
				o = &opStats{Sizes: make(map[string]map[string]uint64)}
				ops[opNames[k]] = o
			}
			o.Requests += n
			o.Bytes += l.counters.bytes[k].Load()
			o.Errors += l.counters.errors[k].Load()
			o.addSizes(&l.counters.sizes[k])
		}
	})
	return ops, requests, batches, lanes
}

func (o *opStats) addSizes(sizes *[sizeClasses][alignClasses]atomic.Uint64) {
	for s := range sizes {
		for a := range sizes[s] {
			n := sizes[s][a].Load()
			if n == 0 {
				continue
			}
			size, align := strconv.FormatInt(1<<s, 10), strconv.FormatInt(1<<a, 10)
			if o.Sizes[size] == nil {
				o.Sizes[size] = make(map[string]uint64)
			}
			o.Sizes[size][align] += n
		}
	}
}
