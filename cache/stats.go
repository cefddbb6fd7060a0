package cache

import (
	"slices"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Stats is what the cache did since it was made.
type Stats struct {
	Capacity int64   `json:"capacity_bytes"`
	Used     int64   `json:"used_bytes"`
	Hits     uint64  `json:"hits"`   // blocks
	Misses   uint64  `json:"misses"` // blocks
	HitRate  float64 `json:"hit_rate"`
	Fills    uint64  `json:"fills"`
	Evicted  uint64  `json:"evicted"`

	ReadAhead AheadStats `json:"read_ahead"`
}

// AheadStats is what was read ahead, in blocks.
type AheadStats struct {
	Limit  int64  `json:"limit_bytes"`
	Read   uint64 `json:"read"`
	Used   uint64 `json:"used"`   // asked for afterwards
	Wasted uint64 `json:"wasted"` // evicted without having been asked for
}

// sums adds up channels.
type sums struct{ hits, misses, fills, aheadHits uint64 }

func (s *sums) add(c *counts) {
	s.hits += c.hits.Load()
	s.misses += c.misses.Load()
	s.fills += c.fills.Load()
	s.aheadHits += c.aheadHits.Load()
}

// Stats may be called at any time.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	sum := s.past
	for _, c := range s.channels {
		sum.add(&c.count)
	}
	s.mu.Unlock()
	out := Stats{
		Capacity: int64(len(s.table.ways)) * kvstore.BlockSize,
		Used:     s.table.blocks.Load() * kvstore.BlockSize,
		Hits:     sum.hits, Misses: sum.misses, Fills: sum.fills, Evicted: s.table.evicts.Load(),
		ReadAhead: AheadStats{Used: sum.aheadHits, Wasted: s.table.wasted.Load()},
	}
	if n := sum.hits + sum.misses; n > 0 {
		out.HitRate = float64(sum.hits) / float64(n)
	}
	if s.ahead != nil {
		out.ReadAhead.Limit = int64(s.ahead.limit) * kvstore.BlockSize
		out.ReadAhead.Read = s.ahead.read.Load()
	}
	return out
}

// leave takes a channel that is closed out of the list.
func (s *Store) leave(c *channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past.add(&c.count)
	if i := slices.Index(s.channels, c); i >= 0 {
		s.channels = slices.Delete(s.channels, i, i+1)
	}
}
