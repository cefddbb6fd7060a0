// Package writeback acknowledges overwrites before the store has them, as the
// volatile write cache of a disk does: what was not flushed may be lost with the
// process. It is a decorator of the store contract.
//
// # The nouns
//
//   - A write is deferred if it was acknowledged and is not stored yet, and its
//     block is dirty. Only writes that say so (Op.Deferrable) are: overwrites of
//     blocks that exist, so what a crash leaves is the old block, never a hole or a
//     loss, and a full store is met by a write, never by a flush.
//   - An entry is one dirty block with its data (table.go). It is queued, or flying:
//     on its way into the store.
//   - A layer has the entries of one volume, from its opening to its last close.
//   - A drainer stores the entries of one server, in the background (drain.go).
//
// # What holds
//
// Nothing is deferred before the first flush of a layer succeeded, nor after its
// entries failed to be stored until a flush succeeds, nor while the fence is closed.
// One entry of a block is flying at most, so versions of a block are stored in
// order; a write that comes meanwhile makes a second entry, which waits. A write
// that is not deferrable, or a discard, is not sent while its block is flying; a
// discard drops the entry, any other write has it stored first. A flush returns when
// everything that was dirty at its beginning is stored, and only then flushes the
// store. Reads see what is dirty.
//
// # Order of locks
//
// layer.mu, then Store.mu. Both are leaves for everybody else, and neither is held
// across I/O.
package writeback

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Config of Wrap.
type Config struct {
	// MaxDirty bounds what is acknowledged and not stored, in bytes; at least a
	// block. Writes beyond it go through.
	MaxDirty int64
	// MaxAge is how long a block stays dirty before it is stored without a flush.
	MaxAge time.Duration
	// Log receives one line per event that a user should know of. nil: discarded.
	Log func(format string, args ...any)
}

// Store decorates a store. Safe for concurrent use.
type Store struct {
	kvstore.Store // what is handed on
	cfg           Config
	began         time.Time
	extents       bool // of the store's properties: DiscardExtents

	place  atomic.Pointer[placed]
	layers atomic.Pointer[map[kvstore.LayerID]*layer] // a copy is changed, under mu
	dirty  atomic.Int64                               // entries

	mu       sync.Mutex // guards what follows, and those who change layers
	memory   []byte
	free     []*entry
	drainers []*drainer // by server
	past     counts     // of layers that are closed
	closed   bool
}

// placed holds the Placement of Join: an interface cannot be stored atomically.
type placed struct{ kvstore.Placement }

// Wrap decorates a store, which must honour expectations and take overwrites when it
// is full (Properties.Expects, Reserve): kvstore.ErrUnsupported else. Whoever wraps it
// closes only the wrapper.
func Wrap(inner kvstore.Store, cfg Config) (*Store, error) {
	if p := inner.Properties(); !p.Expects || !p.Reserve || p.Presence {
		return nil, fmt.Errorf("write-back needs a store that keeps no presence and takes overwrites when it is full: %w", kvstore.ErrUnsupported)
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	cfg.MaxDirty = max(cfg.MaxDirty, kvstore.BlockSize)
	s := &Store{Store: inner, cfg: cfg, began: time.Now(), extents: inner.Properties().DiscardExtents}
	if err := s.allocate(int(cfg.MaxDirty / kvstore.BlockSize)); err != nil {
		return nil, err
	}
	s.layers.Store(&map[kvstore.LayerID]*layer{})
	for n := range inner.Servers() {
		s.drainers = append(s.drainers, newDrainer(s, n))
	}
	return s, nil
}

// Opened says that a layer's volume is opened: its writes may be deferred once a
// flush was seen. What was left of an earlier opening is dropped.
func (s *Store) Opened(id kvstore.LayerID) {
	s.Closed(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(func(all map[kvstore.LayerID]*layer) { all[id] = newLayer(s, id) })
}

// Closed says that a layer's volume was closed. If it was not flushed, what is dirty
// is dropped, as a crash would do. It waits for what is flying, which ends soon, as
// nobody waits for its servers any more.
func (s *Store) Closed(id kvstore.LayerID) {
	l := s.get(id)
	if l == nil {
		return
	}
	if n := l.end(); n > 0 {
		s.cfg.Log("layer %v: %d KiB that were acknowledged and never flushed are dropped", id, n*kvstore.BlockSize>>10)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past.add(l.count)
	s.change(func(all map[kvstore.LayerID]*layer) {
		if all[id] == l {
			delete(all, id)
		}
	})
}

// change replaces the map of layers by a changed copy. mu is held.
func (s *Store) change(f func(map[kvstore.LayerID]*layer)) {
	next := maps.Clone(*s.layers.Load())
	f(next)
	s.layers.Store(&next)
}

func (s *Store) get(id kvstore.LayerID) *layer { return (*s.layers.Load())[id] }

// Join is handed on.
func (s *Store) Join(p kvstore.Placement) error {
	if err := s.Store.Join(p); err != nil {
		return err
	}
	s.place.Store(&placed{p})
	return nil
}

// Channel opens a channel whose overwrites may be deferred.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	inner, err := s.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return newChannel(s, inner), nil
}

// RemoveLayer drops what is dirty of the layer and is handed on.
func (s *Store) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	s.Closed(id)
	return s.Store.RemoveLayer(ctx, id)
}

// Close ends the drainers and closes the store below. Volumes are closed before, so
// nothing is dirty any more; what is nevertheless is dropped.
func (s *Store) Close() error {
	for id := range *s.layers.Load() {
		s.Closed(id)
	}
	for _, d := range s.drainers {
		d.stop()
	}
	err := s.Store.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if e := s.release(); err == nil {
		err = e
	}
	return err
}

// now is a monotonic time in nanoseconds.
func (s *Store) now() int64 { return int64(time.Since(s.began)) }

// Stats is what write-back does now, and did since it was made.
type Stats struct {
	MaxDirty int64   `json:"max_dirty_bytes"`
	Dirty    int64   `json:"dirty_bytes"`
	Age      float64 `json:"dirty_age_seconds"` // of the oldest
	MaxAge   float64 `json:"max_dirty_age_seconds"`

	Deferred uint64 `json:"deferred"` // blocks written; Merged are part of them
	Merged   uint64 `json:"merged"`   // into a block that was dirty already
	Through  uint64 `json:"through"`  // overwrites that were not deferred
	Stored   uint64 `json:"stored"`   // blocks that were dirty
	Failed   uint64 `json:"failed"`   // tries to store a block
	Healed   uint64 `json:"healed"`   // dirty blocks that the store had lost meanwhile
	Dropped  uint64 `json:"dropped"`  // never flushed: aborted, or the lease was lost
}

// Stats may be called at any time.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	sum := s.past
	s.mu.Unlock()
	oldest := int64(-1)
	for _, l := range *s.layers.Load() {
		l.mu.Lock()
		sum.add(l.count)
		if since, ok := l.oldest(); ok && (oldest < 0 || since < oldest) {
			oldest = since
		}
		l.mu.Unlock()
	}
	out := Stats{
		MaxDirty: s.cfg.MaxDirty, MaxAge: s.cfg.MaxAge.Seconds(), Dirty: s.dirty.Load() * kvstore.BlockSize,
		Deferred: sum.deferred, Merged: sum.merged, Through: sum.through,
		Stored: sum.stored, Failed: sum.failed, Healed: sum.healed, Dropped: sum.dropped,
	}
	if oldest >= 0 {
		out.Age = time.Duration(s.now() - oldest).Seconds()
	}
	return out
}
