// Package file is the embedded store: a directory, no server. A key is already
// an offset, so there is no index: each layer is one sparse file, in which block
// n lies at n*4096, an absent block is a hole, and a flush is an fdatasync. What
// the data survives is what the local file system survives.
//
// # The nouns
//
//   - The marker, a file named KVBFS, says that the directory is a store.
//   - A layer file, layers/<id>.blk, holds a layer's blocks. layers/<id>.gone is
//     left when it is removed, so that the id is never used again.
//   - A record, records/<name>, is one control record, replaced as a whole.
//   - The lock file orders changes of records and layers between processes.
//
// # Data flow
//
// Channel.Do cuts its batch into runs (neighbours of one kind and one layer) and
// hands each run to the kernel in one preadv or pwritev from the caller's own
// buffers. The page cache is the cache.
//
// # Lock order
//
// Store.change (and with it the flock), then Store.mu, then layer.mu. On the
// data path only layer.mu is taken, for reading; it is written when the layer is
// removed or closed.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Options of Open. The zero value is right for all but tests.
type Options struct {
	// NoSync leaves out every fsync: faster, and what was flushed does not
	// survive a crash of the machine. Durability is then Volatile.
	NoSync bool
}

// Store is a store in a directory. Safe for concurrent use, also together with
// other processes on the same directory.
type Store struct {
	kvstore.Prompt
	dir   string // absolute
	names []string
	opt   Options
	props kvstore.Properties
	place atomic.Pointer[placed]

	change chan struct{} // holds one token: who has it may take the flock
	lockFD int           // guarded by change; -1: not open

	mu     sync.RWMutex // guards layers, closed
	layers map[kvstore.LayerID]*layer
	closed bool
}

// placed holds the Placement of Join: an interface cannot be stored atomically.
type placed struct{ kvstore.Placement }

// Open opens the store in dir. Nothing is written: a directory that does not
// exist yet is made by the first CreateLayer or record. An error names what is
// wrong with the directory: it belongs to somebody else, or holds other things.
func Open(dir string, opt Options) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("file store %s: %w", dir, err)
	}
	if err := checkDir(abs); err != nil {
		return nil, err
	}
	s := &Store{
		dir:    abs,
		names:  []string{abs},
		opt:    opt,
		change: make(chan struct{}, 1),
		lockFD: -1,
		layers: map[kvstore.LayerID]*layer{},
	}
	s.change <- struct{}{}
	s.props = kvstore.Properties{
		Name:           "file",
		Durability:     kvstore.Disk,
		Presence:       true,
		DiscardExtents: true,
	}
	if opt.NoSync {
		s.props.Durability = kvstore.Volatile
	}
	// A file system that cannot be asked is reported by Usage and Inspect.
	if st, err := statfs(abs); err == nil {
		if inMemory(st) {
			s.props.Durability = kvstore.Volatile
		}
		s.props.Shared = onNetwork(st)
	}
	return s, nil
}

// Properties of the store. Durability is volatile where the directory is on a
// file system in memory; Shared is true where it is on a network file system.
func (s *Store) Properties() kvstore.Properties { return s.props }

// Servers returns the directory.
func (s *Store) Servers() []string { return s.names }

// Control returns the records.
func (s *Store) Control() kvstore.Control { return control{s} }

// Join tells the sentinel; the placement of keys is always server 0.
func (s *Store) Join(p kvstore.Placement) error {
	if err := s.usable(context.Background()); err != nil {
		return err
	}
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	s.place.Store(&placed{p})
	return nil
}

// Channel opens a channel. It checks the sentinel at its first operation.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if s.place.Load() == nil {
		return nil, fmt.Errorf("channel before join: %w", kvstore.ErrInvalid)
	}
	return &channel{
		store: s,
		iov:   make([]unix.Iovec, 0, kvstore.MaxBatch),
		later: make([]span, 0, kvstore.MaxBatch),
	}, nil
}

// Close closes the files. It flushes nothing: what was not flushed is in the
// kernel's hands, as after a crash of the process.
func (s *Store) Close() error {
	<-s.change
	defer func() { s.change <- struct{}{} }()
	if s.lockFD >= 0 {
		_ = unix.Close(s.lockFD) // only a lock: nothing was written
		s.lockFD = -1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, l := range s.layers {
		l.close()
		delete(s.layers, id)
	}
	return nil
}

// usable says why a call cannot be done now.
func (s *Store) usable(ctx context.Context) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
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

// checkSentinel proves that the directory still is the store that was joined.
func (s *Store) checkSentinel() error {
	name, want := s.place.Load().Sentinel(0)
	if name == "" {
		return nil
	}
	_, value, err := s.readRecord(name)
	switch {
	case err == nil && string(value) == string(want):
		return nil
	case err == nil || errors.Is(err, kvstore.ErrAbsent):
		err = kvstore.ErrServerLost
	}
	return s.failed("check sentinel", name, err)
}

// failed makes the error of a call that is not about a block.
func (s *Store) failed(op, name string, err error) error {
	var done *kvstore.OpError
	if errors.As(err, &done) {
		return err
	}
	return &kvstore.OpError{Op: op, Server: s.dir, Name: name, Err: err}
}

// classify puts an error of the operating system into the contract's words, and
// keeps its own text. unknown is what a failure without a word of its own
// becomes: ErrCorrupt for reads (the medium lost it), else ErrUnreachable (the
// outcome is unknown).
func classify(err, unknown error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: %w", kvstore.ErrFull, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", kvstore.ErrServerLost, err)
	}
	return fmt.Errorf("%w: %w", unknown, err)
}

// syncDir makes the names in a directory stable.
func (s *Store) syncDir(dir string) error {
	if s.opt.NoSync {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
