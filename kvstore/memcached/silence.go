package memcached

import (
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// silence is what is known of a server that does not answer: a hint for callers
// that have others to serve (kvstore.Channel.Try), not an outage yet.
type silence struct {
	silent atomic.Bool
	// usual is what answers that came after the grace took, smoothed, in
	// nanoseconds: a server that is far away is not silent.
	usual atomic.Int64
}

const (
	// graceMin is how long any server may take: some hundred round trips of a local
	// network. It is also what one blocking receive waits.
	graceMin = 20 * time.Millisecond
	// graceFactor times the usual time of a slow server is its grace.
	graceFactor = 4
	// lateMax bounds what counts as a slow answer; what takes longer is an outage.
	lateMax = time.Second
)

// grace is how long a caller stays for an answer.
func (s *server) grace() time.Duration {
	return max(graceMin, graceFactor*time.Duration(s.usual.Load()))
}

// late notes an answer that came after the grace.
func (s *server) late(took time.Duration) {
	if took > lateMax {
		return
	}
	usual := s.usual.Load()
	s.usual.Store(usual + (int64(took)-usual)/2)
}

// fallSilent notes that the grace passed without an answer.
func (s *server) fallSilent() {
	if !s.silent.Load() && s.silent.CompareAndSwap(false, true) {
		s.store.silent.Add(1)
	}
}

// speaks notes an answer.
func (s *server) speaks() {
	if s.silent.Load() && s.silent.CompareAndSwap(true, false) {
		s.store.silent.Add(-1)
	}
}

// AnySilent implements kvstore.Store.
func (s *Store) AnySilent() bool { return s.silent.Load() != 0 }

// Rewinds implements kvstore.Store: a memcached that lost something lost all, which
// its sentinel shows.
func (s *Store) Rewinds() uint64 { return 0 }

// Silent implements kvstore.Store.
func (s *Store) Silent(k kvstore.Key) bool {
	p := s.place.Load()
	if p == nil || s.silent.Load() == 0 {
		return false
	}
	i := (*p).Server(k)
	return i >= 0 && i < len(s.servers) && s.servers[i].silent.Load()
}
