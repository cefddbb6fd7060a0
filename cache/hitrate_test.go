package cache_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// bestHits are the hits of the best of all policies that were tried on the reads of
// zipfReads, by what part of the blocks the cache holds: `go run .` in test/policies
// prints them. docs/cache.md has the table of a longer run.
var bestHits = []struct {
	part int
	hits float64 // per read
}{
	{100, 0.412}, {20, 0.555}, {10, 0.628}, {4, 0.722},
}

// zipfReads draws n blocks out of span, the same ones each time; the block of rank k has
// the weight k^-0.9.
func zipfReads(span, n int) (reads []uint64, distinct int) {
	rng := rand.New(rand.NewPCG(1, 2))
	sum, cumulated, place := 0.0, make([]float64, span), rng.Perm(span)
	for i := range cumulated {
		sum += math.Pow(float64(i+1), -0.9)
		cumulated[i] = sum
	}
	seen := map[int]bool{}
	for range n {
		u := rng.Float64() * sum
		low, high := 0, span-1
		for low < high {
			if mid := (low + high) / 2; cumulated[mid] < u {
				low = mid + 1
			} else {
				high = mid
			}
		}
		seen[low] = true
		reads = append(reads, uint64(place[low]))
	}
	return reads, len(seen)
}

// On zipf-distributed reads, whatever the size of the cache, the hits are within 3 % of
// those of the best policy.
func TestHitRate(t *testing.T) {
	reads, distinct := zipfReads(1<<15, 200_000)
	for _, best := range bestHits {
		// 16 blocks and their places take 66048 bytes.
		s, ch := overBlackhole(t, int64(distinct/best.part/16*66048))
		op := readOp(0)
		for _, n := range reads {
			op.Key.Number = n
			ch.Do(ctx, []*kvstore.Op{op})
		}
		st := s.Stats()
		got := float64(st.Hits) / float64(st.Hits+st.Misses)
		if got < 0.97*best.hits {
			t.Errorf("a cache of 1/%d: %.4f of the reads hit, with the best policy %.4f", best.part, got, best.hits)
		}
		t.Logf("a cache of 1/%d: %.4f, best %.4f", best.part, got, best.hits)
		_ = ch.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
