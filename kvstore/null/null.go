// Package null is a store that keeps no blocks: writes and discards succeed at
// once, and reads leave the caller's buffer as it is. Records and claims of layer
// ids are kept, in memory, so that volumes can be made on it.
//
// It exists to measure what is above a store: with it, the time of a request is
// the kernel's, the transport's and the volume's alone. It says that it knows
// which blocks exist (Properties.Presence), so that no presence map is kept and
// every read comes down to it; asked, it says that none does.
//
// It is no store to keep anything on, and no help lists it.
package null

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// Store is the store. Safe for concurrent use.
type Store struct {
	kvstore.Prompt
	records *mem.Store // records and claims; never a block
	joined  atomic.Bool
	closed  atomic.Bool
}

var _ kvstore.Store = (*Store)(nil)

// New makes a store without volumes.
func New() *Store { return &Store{records: mem.New(mem.Config{})} }

// Properties: of a store that needs nothing from the layers above.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{Name: "null", Durability: kvstore.Volatile, Presence: true, DiscardExtents: true}
}

// Servers returns one name.
func (s *Store) Servers() []string { return []string{"null"} }

// Control returns the records.
func (s *Store) Control() kvstore.Control { return s.records.Control() }

// Join notes that there is a placement; there is nothing to place.
func (s *Store) Join(p kvstore.Placement) error {
	if s.closed.Load() {
		return kvstore.ErrClosed
	}
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	s.joined.Store(true)
	return nil
}

// Channel opens a channel.
func (s *Store) Channel(context.Context) (kvstore.Channel, error) {
	switch {
	case s.closed.Load():
		return nil, kvstore.ErrClosed
	case !s.joined.Load():
		return nil, fmt.Errorf("channel before join: %w", kvstore.ErrInvalid)
	}
	return &channel{}, nil
}

// CreateLayer claims the id.
func (s *Store) CreateLayer(ctx context.Context, layer kvstore.LayerID) error {
	return s.records.CreateLayer(ctx, layer)
}

// RemoveLayer keeps the claim, which is all that a layer has.
func (s *Store) RemoveLayer(ctx context.Context, layer kvstore.LayerID) error {
	return s.records.RemoveLayer(ctx, layer)
}

// NextExtent: all is one hole.
func (s *Store) NextExtent(_ context.Context, _ kvstore.LayerID, from uint64, data bool) (uint64, error) {
	if data {
		return 0, kvstore.ErrAbsent
	}
	return from, nil
}

// Allocated is 0.
func (s *Store) Allocated(context.Context, kvstore.LayerID) (uint64, error) { return 0, nil }

// Usage: unlimited, and nothing is used.
func (s *Store) Usage(context.Context) (kvstore.Usage, error) { return kvstore.Usage{}, nil }

// Inspect says what a user who found it must know. It does not refuse: whoever
// names it wants it.
func (s *Store) Inspect(context.Context) ([]kvstore.Finding, error) {
	return []kvstore.Finding{{
		Server: "null", Severity: kvstore.Warn,
		What: "this store keeps nothing that is written; it is there to measure what is above it",
		Fix:  "use file:, memcached: or another store for data",
	}}, nil
}

// Locate: nowhere.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	return kvstore.Location{Server: "null", Key: fmt.Sprintf("%x", raw)}
}

// Close ends the store.
func (s *Store) Close() error {
	s.closed.Store(true)
	return s.records.Close()
}

// channel is one worker's way in. It holds nothing.
type channel struct{ closed bool }

// Do succeeds with everything that keeps to the contract. It does not look at the
// context: it never waits.
func (c *channel) Do(_ context.Context, ops []*kvstore.Op) {
	var all error
	switch {
	case c.closed:
		all = kvstore.ErrClosed
	case len(ops) > kvstore.MaxBatch:
		all = kvstore.ErrInvalid
	}
	var passed *kvstore.Fence // looked at once for a batch: it costs a system call
	for _, op := range ops {
		if op.Err = all; all != nil {
			continue
		}
		op.Err = check(op)
		if op.Err == nil && op.Code != kvstore.Read && op.Fence != passed {
			if !op.Fence.Passes() {
				op.Err = kvstore.ErrFenced
				continue
			}
			passed = op.Fence
		}
	}
}

// check says whether an operation keeps to the contract.
func check(op *kvstore.Op) error {
	switch {
	case op.Key.Number > kvstore.MaxNumber:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Discard:
		return nil
	case op.Code != kvstore.Read && op.Code != kvstore.Write, len(op.Data) != kvstore.BlockSize:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Write && op.Expect != kvstore.Any, op.Versioned:
		return kvstore.ErrUnsupported
	}
	return nil
}

// Try implements kvstore.Channel: nothing here is ever silent.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

// Finish implements kvstore.Channel; Try leaves nothing.
func (c *channel) Finish(context.Context) {}

// Flush has nothing to do.
func (c *channel) Flush(context.Context, kvstore.LayerID) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	return nil
}

// Close ends the channel.
func (c *channel) Close() error {
	c.closed = true
	return nil
}
