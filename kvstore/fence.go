package kvstore

import (
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Fence is the right to write to a volume, as a deadline that the holder of the
// lease moves on. Stores check it before each send. It is safe for concurrent
// use; the zero Fence is closed.
//
// The clock is CLOCK_BOOTTIME, which also runs while the machine sleeps: a
// laptop that wakes up after its lease ran out must not write.
type Fence struct{ deadline atomic.Int64 } // nanoseconds of CLOCK_BOOTTIME

// Open lets writes pass until the given time of Boottime.
func (f *Fence) Open(deadline int64) { f.deadline.Store(deadline) }

// OpenForEver lets writes pass with no deadline: for stores that nobody else
// can reach.
func (f *Fence) OpenForEver() { f.deadline.Store(math.MaxInt64) }

// Close lets no further write pass.
func (f *Fence) Close() { f.deadline.Store(0) }

// Deadline is until when writes may pass, in nanoseconds of Boottime; 0: not at all.
func (f *Fence) Deadline() int64 { return f.deadline.Load() }

// Closed says whether the right was given back or lost, as opposed to a deadline that
// has passed and may be moved on. A nil Fence is never closed.
func (f *Fence) Closed() bool { return f != nil && f.deadline.Load() == 0 }

// Passes says whether a write may be sent now. A nil Fence lets all pass.
func (f *Fence) Passes() bool {
	if f == nil || Unchecked {
		return true
	}
	d := f.deadline.Load()
	return d == math.MaxInt64 || (d != 0 && Boottime() < d)
}

// Boottime returns CLOCK_BOOTTIME in nanoseconds.
func Boottime() int64 {
	var ts unix.Timespec
	// It cannot fail on the kernels that FUSE needs (Linux 2.6.39, clock_gettime(2)).
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}
