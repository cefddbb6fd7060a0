package wire

import (
	"sync/atomic"
	"time"
)

// Silence is what is known of a server that does not answer: a hint for callers
// that have others to serve (kvstore.Channel.Try), not an outage yet. Set Count
// before; safe for concurrent use.
type Silence struct {
	// Count is how many servers of the store are silent.
	Count *atomic.Int32

	silent atomic.Bool
	// usual is what answers that came after the grace took, smoothed, in
	// nanoseconds: a server that is far away is not silent.
	usual atomic.Int64
}

const (
	// GraceMin is how long any server may take: some hundred round trips of a local
	// network. It is also what one blocking receive waits.
	GraceMin = 20 * time.Millisecond
	// graceFactor times the usual time of a slow server is its grace.
	graceFactor = 4
	// lateMax bounds what counts as a slow answer; what takes longer is an outage.
	lateMax = time.Second
)

// Grace is how long a caller stays for an answer.
func (s *Silence) Grace() time.Duration {
	return max(GraceMin, graceFactor*time.Duration(s.usual.Load()))
}

// Late notes an answer that came after the grace.
func (s *Silence) Late(took time.Duration) {
	if took > lateMax {
		return
	}
	usual := s.usual.Load()
	s.usual.Store(usual + (int64(took)-usual)/2)
}

// Fall notes that the grace passed without an answer.
func (s *Silence) Fall() {
	if !s.silent.Load() && s.silent.CompareAndSwap(false, true) {
		s.Count.Add(1)
	}
}

// Speaks notes an answer.
func (s *Silence) Speaks() {
	if s.silent.Load() && s.silent.CompareAndSwap(true, false) {
		s.Count.Add(-1)
	}
}

// Silent says whether the server is silent.
func (s *Silence) Silent() bool { return s.silent.Load() }

// Until is when a channel returns to its caller, if not with all results.
type Until uint8

const (
	Stays  Until = iota // never
	Leaves              // once all that is missing waits for servers that are silent for their grace
	Looks               // the same, of what was left: after something came, or a slice
)
