package fusefs

import (
	"context"
	"sync"

	"github.com/kvbfs/kvbfs/kvstore"
)

// gatedStore holds up data batches while its gate is closed.
type gatedStore struct {
	kvstore.Store
	mu   sync.Mutex
	gate chan struct{} // nil: open
	// panics makes the next batch panic.
	panics bool
}

func (s *gatedStore) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = make(chan struct{})
}

func (s *gatedStore) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

func (s *gatedStore) plant() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.panics = true
}

func (s *gatedStore) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := s.Store.Channel(ctx)
	return &gatedChannel{ch, s}, err
}

type gatedChannel struct {
	kvstore.Channel
	s *gatedStore
}

func (c *gatedChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	c.s.mu.Lock()
	gate, panics := c.s.gate, c.s.panics
	c.s.panics = false
	c.s.mu.Unlock()
	if panics {
		panic("planted")
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			for _, op := range ops {
				op.Err = kvstore.ErrAborted
			}
			return
		}
	}
	c.Channel.Do(ctx, ops)
}

// Try and Finish go the same way: what is embedded must not be reached past Do.
func (c *gatedChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

func (c *gatedChannel) Finish(context.Context) {}
