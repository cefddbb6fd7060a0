// Package wire is what the stores that speak to servers over sockets share: raw
// sockets for worker threads, queues of requests, back-off, the log of outages,
// and the hold on a server that may still execute what was given up.
//
// # Raw sockets
//
// Data connections are descriptors, never net.Conn: a locked worker thread that
// waits in Go's netpoller is woken through another thread, which was measured to
// cost 10 ms and more at the 99th percentile. Sends never block (MSG_DONTWAIT);
// receives may, for [GraceMin] at most (SO_RCVTIMEO), which saves the poll before
// each of them.
//
// The system calls are announced to the Go scheduler (Syscall, not RawSyscall): a
// call that blocks for longer than some 20 us loses its P to other goroutines,
// and a stop-the-world never waits for a silent server.
//
// # Locks
//
// Outage.mu is a leaf and is never held across I/O. All else is atomic, or owned
// by one goroutine.
package wire

import (
	"math/rand/v2"
	"time"
)

// Slice is how long one poll of a worker lasts at most. It bounds how late a
// cancelled context is noticed.
const Slice = 100 * time.Millisecond

// Backoff returns how long to wait before the next dial: not at all after the
// first failure, then 10 ms doubled up to a second, each with a jitter so that
// many workers do not come back in step. jitter returns a random time from 0 up to
// its argument: [Jitter], unless a simulation chooses.
func Backoff(failures int, jitter func(time.Duration) time.Duration) time.Duration {
	if failures == 0 {
		return 0
	}
	d := 10 * time.Millisecond << min(failures-1, 7)
	d = min(d, time.Second)
	return d/2 + jitter(d/2)
}

// Jitter returns a random time from 0 up to limit.
func Jitter(limit time.Duration) time.Duration { return rand.N(limit + 1) }

// start is some time before anything began.
var start = time.Now().Add(-time.Hour)

// Clock is a monotonic time in nanoseconds, far above 0: what is compared with the
// last time must not go by a clock that can be set.
func Clock() int64 { return int64(time.Since(start)) }
