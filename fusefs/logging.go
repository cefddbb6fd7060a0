package fusefs

import (
	"bytes"
	"log"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
)

// limiter lets one line through per interval and counts the others: a dead
// server makes thousands of requests fail per second.
type limiter struct {
	to      func(format string, args ...any)
	next    atomic.Int64 // clock when the next line may pass
	skipped atomic.Int64
}

const logInterval = time.Second

// A few lines pass at once, so that different errors of one moment are seen.
const logBurst = 5

func newLimiter(to func(string, ...any)) *limiter { return &limiter{to: to} }

func (l *limiter) log(format string, args ...any) {
	now := clock()
	next := l.next.Load()
	start := max(next, now-int64(logBurst*logInterval))
	if start > now || !l.next.CompareAndSwap(next, start+int64(logInterval)) {
		l.skipped.Add(1)
		return
	}
	if n := l.skipped.Swap(0); n > 0 {
		l.to("(%d similar lines were left out)", n)
	}
	l.to(format, args...)
}

// panicked answers for a handler that panicked.
func (s *Server) panicked(r any) fuse.Status {
	s.opt.Log("panic in a request: %v\n%s", r, debug.Stack())
	return statusOf(errPanic)
}

// contained runs f, which nobody waits for, and logs a panic in it.
func contained(log func(string, ...any), what string, f func()) {
	kvstore.LogPanic(log, what, kvstore.Contain(func() error { f(); return nil }))
}

// fuseLogger passes on what go-fuse has to say.
func fuseLogger(to func(format string, args ...any)) *log.Logger {
	return log.New(lineWriter(to), "", 0)
}

type lineWriter func(format string, args ...any)

func (w lineWriter) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	// Requests that we do not have (poll, bmap) are answered ENOSYS and not asked
	// again: not worth a line.
	if !bytes.HasPrefix(line, []byte("Unimplemented opcode")) {
		w("fuse: %s", line)
	}
	return len(p), nil
}
