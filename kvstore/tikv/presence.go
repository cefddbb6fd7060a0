package tikv

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tikv/client-go/v2/rawkv"

	"github.com/kvbfs/kvbfs/kvstore"
)

// scanned is how many keys one request asks for.
const scanned = 4096

// NextExtent implements kvstore.Store. The end of an extent takes as many requests
// as it has times 4096 blocks.
func (s *Store) NextExtent(ctx context.Context, id kvstore.LayerID, from uint64, data bool) (next uint64, err error) {
	err = s.do(ctx, "look for extents of layer "+id.String(), func(ctx context.Context) error {
		if data {
			begin, end := blocksFrom(id, from, 0)
			keys, _, err := s.raw.Scan(ctx, begin, end, 1, rawkv.ScanKeyOnly())
			switch {
			case err != nil:
				return err
			case len(keys) == 0:
				return refusal{kvstore.ErrAbsent}
			}
			next = blockNumber(keys[0])
			return nil
		}
		next = from
		return s.each(ctx, id, from, func(n uint64) bool {
			if n == next {
				next++
				return true
			}
			return false
		})
	})
	return next, err
}

// each calls f with the numbers of the blocks from one on, in order, until it has
// enough.
func (s *Store) each(ctx context.Context, id kvstore.LayerID, from uint64, f func(n uint64) bool) error {
	for {
		begin, end := blocksFrom(id, from, 0)
		keys, _, err := s.raw.Scan(ctx, begin, end, scanned, rawkv.ScanKeyOnly())
		if err != nil {
			return err
		}
		for _, k := range keys {
			from = blockNumber(k) + 1
			if !f(from - 1) {
				return nil
			}
		}
		if len(keys) < scanned {
			return nil
		}
	}
}

// countAge is how long a count is good for: others may write.
const countAge = 10 * time.Second

// counts are the numbers of blocks as counted last. A count takes a request per 4096
// blocks, and is asked for with each stat of an image.
type counts struct {
	changes atomic.Uint64 // grows before and after each change that this process makes
	mu      sync.Mutex    // guards of; never held across I/O
	of      map[kvstore.LayerID]count
}

type count struct {
	blocks, changes uint64
	at              int64 // of Boottime
}

func (c *counts) changed() { c.changes.Add(1) }

// Allocated implements kvstore.Store.
func (s *Store) Allocated(ctx context.Context, id kvstore.LayerID) (uint64, error) {
	n := count{changes: s.counts.changes.Load(), at: kvstore.Boottime()}
	s.counts.mu.Lock()
	last, ok := s.counts.of[id]
	s.counts.mu.Unlock()
	if ok && last.changes == n.changes && n.at-last.at < int64(countAge) {
		return last.blocks, s.usable(ctx)
	}
	err := s.do(ctx, "count blocks of layer "+id.String(), func(ctx context.Context) error {
		return s.each(ctx, id, 0, func(uint64) bool { n.blocks++; return true })
	})
	if err != nil {
		return 0, err
	}
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	if s.counts.of == nil {
		s.counts.of = map[kvstore.LayerID]count{}
	}
	s.counts.of[id] = n
	return n.blocks, nil
}
