// Package mem is a store in the memory of the process. It behaves as memcached
// does: absent blocks are reported, expectations and checksums are honoured, it
// can be full, and a server of it can be emptied. So tests of the layers above
// meet the same answers as in production, and the hooks in hooks.go cause each
// misfortune on purpose. As mem: it is also a store that users may choose, for
// trying things out: what is in it ends with the process.
//
// # The nouns
//
//   - A server is virtual: one table of blocks, one of records, one of claimed
//     layer ids. The pool's Placement spreads keys over servers.
//   - A shard is a part of a server's table with its own lock.
//   - An entry is one stored block: data, checksum, version.
//
// # Data flow
//
// Channel.Do takes the operations one by one: server from the placement, shard
// from the key, copy under the shard's lock. Nothing blocks, so there is no
// retry and no time limit.
//
// # Lock order
//
// shard.mu and server.mu are leaves: no other lock is taken under them. Layer
// claims take Store.claims and then each server.mu in turn.
package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Config of New.
type Config struct {
	// Servers is the number of virtual servers; 0 means 1.
	Servers int
	// CapacityBlocks is how many blocks each server takes; 0: unlimited. A full
	// server refuses new blocks and, as memcached -M does, also overwrites.
	CapacityBlocks int
	// Reserve keeps room on a full server for overwrites and for blocks of other
	// kinds than KindBlock, so that these still succeed.
	Reserve bool
}

// Store is the store. Safe for concurrent use.
type Store struct {
	kvstore.Prompt
	cfg     Config
	names   []string
	servers []*server
	place   atomic.Pointer[placed]
	closed  atomic.Bool
	claims  sync.Mutex // orders claims of layer ids over all servers

	counters counters
}

// placed holds the Placement of Join: an interface cannot be stored atomically.
type placed struct{ kvstore.Placement }

// New makes an empty store.
func New(cfg Config) *Store {
	cfg.Servers = max(cfg.Servers, 1)
	s := &Store{cfg: cfg}
	for i := range cfg.Servers {
		s.names = append(s.names, fmt.Sprintf("mem%d", i))
		s.servers = append(s.servers, newServer(s.names[i], cfg))
	}
	return s
}

// Properties: those of memcached.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{
		Name:          "mem",
		Durability:    kvstore.Volatile,
		ReportsAbsent: true,
		Expects:       true,
		Checksums:     true,
		Reserve:       s.cfg.Reserve,
		MayForget:     true,
	}
}

// Servers returns mem0, mem1 and so on.
func (s *Store) Servers() []string { return s.names }

// Control returns the records.
func (s *Store) Control() kvstore.Control { return control{s} }

// Join tells where blocks live.
func (s *Store) Join(p kvstore.Placement) error {
	if s.closed.Load() {
		return kvstore.ErrClosed
	}
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	s.place.Store(&placed{p})
	return nil
}

// Channel opens a channel. The sentinel of a server is checked at the first
// operation on it, as on a new connection.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	if s.closed.Load() {
		return nil, kvstore.ErrClosed
	}
	p := s.place.Load()
	if p == nil {
		return nil, fmt.Errorf("channel before join: %w", kvstore.ErrInvalid)
	}
	if err := ended(ctx); err != nil {
		return nil, err
	}
	return &channel{store: s, place: p.Placement, proven: make([]bool, len(s.servers))}, nil
}

// CreateLayer claims the id on every server: taken on one is taken.
func (s *Store) CreateLayer(ctx context.Context, layer kvstore.LayerID) error {
	if err := s.usable(ctx); err != nil {
		return err
	}
	s.claims.Lock()
	defer s.claims.Unlock()
	for _, sv := range s.servers {
		if sv.claimed(layer) {
			return &kvstore.OpError{Op: "create layer " + layer.String(), Server: sv.name, Err: kvstore.ErrExists}
		}
	}
	for _, sv := range s.servers {
		sv.claim(layer)
	}
	return nil
}

// RemoveLayer keeps the claim, which is all that a layer has besides its blocks.
func (s *Store) RemoveLayer(ctx context.Context, layer kvstore.LayerID) error {
	return s.usable(ctx)
}

// NextExtent is not supported: presence is the volume's job, as on memcached.
func (s *Store) NextExtent(context.Context, kvstore.LayerID, uint64, bool) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Allocated is not supported either.
func (s *Store) Allocated(context.Context, kvstore.LayerID) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Usage counts blocks only; records are small beside them.
func (s *Store) Usage(ctx context.Context) (kvstore.Usage, error) {
	if err := s.usable(ctx); err != nil {
		return kvstore.Usage{}, err
	}
	n := int64(s.Blocks())
	return kvstore.Usage{
		Capacity: int64(s.cfg.CapacityBlocks) * int64(len(s.servers)) * kvstore.BlockSize,
		Used:     n * kvstore.BlockSize,
		Blocks:   n,
	}, nil
}

// Inspect says what a user of mem: must know.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	return []kvstore.Finding{{
		Server:   s.names[0],
		Severity: kvstore.Info,
		What:     "the store is the memory of this process: all data ends with it",
		Fix:      "use file:, memcached: or another store for data that matters",
	}}, nil
}

// Locate names the server and the raw key; no command reaches into a process.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	loc := kvstore.Location{Server: s.names[0], Key: fmt.Sprintf("%x", raw)}
	if p := s.place.Load(); p != nil {
		if n := p.Server(k); n >= 0 && n < len(s.names) {
			loc.Server = s.names[n]
		}
	}
	return loc
}

// Close ends the store: what is called later gives ErrClosed.
func (s *Store) Close() error {
	s.closed.Store(true)
	return nil
}

// usable says why a call cannot be done now.
func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return kvstore.ErrClosed
	}
	return ended(ctx)
}

// ended turns the end of a context into the contract's words.
func ended(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return kvstore.ErrTimeout
	default:
		return kvstore.ErrAborted
	}
}

// checkSentinel asks a server for its proof; nil if it has it or none is asked.
func (s *Store) checkSentinel(p kvstore.Placement, n int) error {
	name, want := p.Sentinel(n)
	if name == "" {
		return nil
	}
	sv := s.servers[n]
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if rec, ok := sv.records[name]; ok && bytes.Equal(rec.value, want) {
		return nil
	}
	return &kvstore.OpError{Op: "check sentinel", Server: sv.name, Name: name, Err: kvstore.ErrServerLost}
}
