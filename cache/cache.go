// Package cache keeps blocks in memory that were read from a store, and reads
// ahead of who reads in sequence. It is a decorator of the store contract: what it
// has it answers, the rest it hands on.
//
// # The nouns
//
//   - A set is a fixed number of ways, a way the place of one block; the hash of a
//     block's key chooses the set (table.go tells the states of a way).
//   - A ghost is a fingerprint of a block that was missed and is not cached: the
//     second miss within a while is what gets a block a way of a full set, so that
//     what is read once costs neither a copy nor a cached block.
//   - A hold is what a channel remembers of an operation under way (channel.go).
//   - A layer's epoch grows when all that is cached of it becomes invalid.
//   - A reader is a number that comes with a read: reads without one are answered
//     by the store itself, as scrub and the verification of a loss need it.
//   - A stream is a reader that goes on where it stopped (streams.go); what is read
//     ahead for it travels on channels of its own (ahead.go).
//
// # What is never served
//
// A write takes its block out of service before it is sent, and puts it back,
// changed, when it was acknowledged; a discard takes it out for good. A read that
// is to fill a way reserves it before it is sent: a write or discard of the block
// that begins in between kills the reservation, and while one is under way nothing
// of its set is reserved. While a server may still execute a change that was given
// up nothing of it is filled. A block that the store says is absent or corrupt goes;
// a server that was found emptied, replaced or back with another past drops all; and
// so does the opening of a volume, since others may have written to it while it was
// closed.
//
// # Order of locks
//
// The lock of a set is a bit that is only ever tried. Whoever works on a way has a
// pin on it. The other mutexes are leaves, and none of them is taken by a hit.
package cache

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Config of Wrap.
type Config struct {
	// Size bounds the memory in bytes, all counted but what read-ahead needs for
	// its connections. At least one set, 65 KiB, is used.
	Size int64
	// ReadAhead bounds how far ahead of a stream is read, in bytes; 0: not at all.
	ReadAhead int64
	// Log receives one line per event that a user should know of. nil: discarded.
	Log func(format string, args ...any)
}

// Store decorates a store. Safe for concurrent use.
type Store struct {
	inner  kvstore.Store
	cfg    Config
	table  *table
	layers layers
	ahead  *ahead // nil: nothing is read ahead

	rewinds atomic.Uint64 // of the store below, when all was dropped last

	mu       sync.Mutex // guards all below
	channels []*channel
	past     sums // of channels that are closed
}

// Wrap decorates a store. Whoever wraps it closes only the wrapper.
func Wrap(inner kvstore.Store, cfg Config) (*Store, error) {
	t, err := newTable(cfg.Size)
	if err != nil {
		return nil, err
	}
	s := &Store{inner: inner, cfg: cfg, table: t}
	s.rewinds.Store(inner.Rewinds())
	if s.cfg.Log == nil {
		s.cfg.Log = func(string, ...any) {}
	}
	if cfg.ReadAhead > 0 {
		s.ahead = newAhead(s)
	}
	return s, nil
}

// Opened says that a layer's volume is opened: from now on its blocks are cached,
// and what was cached of it before is forgotten.
func (s *Store) Opened(layer kvstore.LayerID) { s.layers.begin(layer) }

// reserve is the table's, of a block of which no change can come late: what was read
// before it would be served for ever. The store knows of one that is given up before its
// writer ends, which is what the table looks for; so it is asked after the table was.
func (s *Store) reserve(p place, k kvstore.Key, l *layer, flags uint64) (slot uint32, ok bool) {
	if s.inner.Haunted(k) {
		return 0, false // no other block goes for it
	}
	slot, ok = s.table.reserve(p, k, l, flags)
	if ok && s.inner.Haunted(k) {
		s.table.release(slot)
		return 0, false
	}
	return slot, ok
}

// Drop forgets all that is cached.
func (s *Store) Drop() { s.layers.dropAll() }

// rewound forgets all if a server below may have gone back in time since. Who
// returns finds it forgotten, whoever did it.
func (s *Store) rewound() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.inner.Rewinds(); now != s.rewinds.Load() {
		s.layers.dropAll()
		s.rewinds.Store(now)
		s.cfg.Log("the cache begins anew: a server was replaced or came back with another past")
	}
}

// Properties of the store below.
func (s *Store) Properties() kvstore.Properties { return s.inner.Properties() }

// Servers of the store below.
func (s *Store) Servers() []string { return s.inner.Servers() }

// Control of the store below: records are not cached.
func (s *Store) Control() kvstore.Control { return s.inner.Control() }

// Join is handed on.
func (s *Store) Join(p kvstore.Placement) error {
	if err := s.inner.Join(p); err != nil {
		return err
	}
	if s.ahead != nil {
		s.ahead.join(p, len(s.inner.Servers()))
	}
	return nil
}

// Channel opens a channel that is answered from memory where it can be.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	inner, err := s.inner.Channel(ctx)
	if err != nil {
		return nil, err
	}
	c := newChannel(s, inner)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels = append(s.channels, c)
	return c, nil
}

// CreateLayer is handed on. Who created a layer is the only one to write to it
// until its volume is opened somewhere.
func (s *Store) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	if err := s.inner.CreateLayer(ctx, id); err != nil {
		return err
	}
	s.layers.begin(id)
	return nil
}

// RemoveLayer is handed on, and nothing of the layer is served any more.
func (s *Store) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	s.layers.end(id)
	return s.inner.RemoveLayer(ctx, id)
}

// NextExtent is handed on.
func (s *Store) NextExtent(ctx context.Context, layer kvstore.LayerID, from uint64, data bool) (uint64, error) {
	return s.inner.NextExtent(ctx, layer, from, data)
}

// Allocated is handed on.
func (s *Store) Allocated(ctx context.Context, layer kvstore.LayerID) (uint64, error) {
	return s.inner.Allocated(ctx, layer)
}

// Usage is handed on.
func (s *Store) Usage(ctx context.Context) (kvstore.Usage, error) { return s.inner.Usage(ctx) }

// Inspect is handed on.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) { return s.inner.Inspect(ctx) }

// Silent is handed on.
func (s *Store) Silent(k kvstore.Key) bool { return s.inner.Silent(k) }

// AnySilent is handed on.
func (s *Store) AnySilent() bool { return s.inner.AnySilent() }

// Rewinds is handed on.
func (s *Store) Rewinds() uint64 { return s.inner.Rewinds() }

// Haunted is handed on.
func (s *Store) Haunted(k kvstore.Key) bool { return s.inner.Haunted(k) }

// Locate is handed on.
func (s *Store) Locate(k kvstore.Key) kvstore.Location { return s.inner.Locate(k) }

// Close ends reading ahead, closes the store below and gives the memory back. An
// answer that is waited for in vain does not hold it up for longer than a second.
func (s *Store) Close() error {
	if s.ahead != nil {
		s.ahead.close()
	}
	err := s.inner.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.table.arena != nil {
		if e := freeArena(s.table.arena); err == nil {
			err = e
		}
		s.table.arena = nil
	}
	return err
}
