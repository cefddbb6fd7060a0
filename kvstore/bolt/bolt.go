// Package bolt is a store in one bbolt file. It was written from
// docs/writing-a-store.md, to show how little a store needs; what it is good for,
// docs/stores.md says: everything in one file, each batch of writes an fsynced
// transaction, checksums; slow beside the file store.
//
// # The nouns
//
//   - A layer is a bucket: number of the block (8 bytes, big-endian) -> data and
//     checksum. bbolt keeps keys in order, so the store knows itself which blocks
//     exist, and kvbfs needs no presence map.
//   - The bucket "claims" holds every layer id that was ever taken, "records" the
//     control records, each after its version (8 bytes).
//
// # Data flow
//
// Channel.Do does all reads of a batch in one read transaction, and all writes and
// discards in one write transaction, which is on disk when it returns; very large
// discards take several. So Flush has nothing left to do.
//
// bbolt maps the file into memory. What cannot be read, because the disk fails or
// somebody cut the file, is a fault then, and damage makes bbolt panic: both become
// errors (guard), and the transaction is rolled back.
//
// # Locks
//
// bbolt's own: many readers, one writer. The file is locked by flock: one process has
// it at a time.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

var (
	layersBucket  = []byte("layers")
	claimsBucket  = []byte("claims")
	recordsBucket = []byte("records")
)

// lockTime is how long Open waits for another process to close the file.
const lockTime = time.Second

// Store is an opened file. Safe for concurrent use.
type Store struct {
	path   string
	names  []string
	db     *bbolt.DB
	joined atomic.Bool
	closed atomic.Bool
	// stuck: bbolt could not begin a transaction and keeps its locks, for ever.
	stuck atomic.Bool
}

var _ kvstore.Store = (*Store)(nil)

// Open opens the file, or makes it (mode 0600).
func Open(path string) (s *Store, err error) {
	s = &Store{path: path, names: []string{path}}
	err = guard(func() error {
		s.db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTime})
		if err != nil {
			return err
		}
		return s.update(func(tx *bbolt.Tx) error {
			for _, name := range [][]byte{layersBucket, claimsBucket, recordsBucket} {
				if _, err := tx.CreateBucketIfNotExists(name); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err == nil {
		return s, nil
	}
	if s.db != nil && !s.stuck.Load() {
		_ = s.db.Close()
	}
	if errors.Is(err, bberrors.ErrTimeout) {
		err = fmt.Errorf("%w: another process has it open (a mount?), and only one can", kvstore.ErrUnreachable)
	}
	return nil, &kvstore.OpError{Op: "open", Server: path, Err: err}
}

// errStuck: the file's first pages, without which there is no transaction, were damaged.
var errStuck = fmt.Errorf("%w: the file is damaged: its beginning could not be read; it can be opened again by another process only", kvstore.ErrCorrupt)

// guard turns a panic of bbolt, which is how it meets a damaged file, into an error,
// and so a fault in the mapped file, which else ends the process.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		p := recover()
		if fault, ok := p.(interface{ Addr() uintptr }); ok {
			err = fmt.Errorf("%w: the file is damaged: a part of it cannot be read (it was cut, or the disk fails): fault at %#x", kvstore.ErrCorrupt, fault.Addr())
		} else if p != nil {
			err = fmt.Errorf("%w: the file is damaged: %v", kvstore.ErrCorrupt, p)
		}
	}()
	return f()
}

// view and update run one transaction.
func (s *Store) view(f func(*bbolt.Tx) error) error { return s.transact(false, f) }

func (s *Store) update(f func(*bbolt.Tx) error) error { return s.transact(true, f) }

// transact ends the transaction whatever happens. bbolt's own View and Update do not:
// after a panic they read the list of free pages from the file again, and if that
// panics too the writers' lock stays locked. Rollback reads nothing; what a commit that
// panicked had taken of the free pages stays unused.
func (s *Store) transact(write bool, f func(*bbolt.Tx) error) error {
	if s.stuck.Load() {
		return errStuck
	}
	return guard(func() error {
		tx, err := s.begin(write)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // ErrTxClosed after a commit
		if err := f(tx); err != nil || !write {
			return err
		}
		return tx.Commit()
	})
}

// begin begins a transaction. bbolt reads the file's first pages under its locks and
// keeps those when it panics.
func (s *Store) begin(write bool) (tx *bbolt.Tx, err error) {
	begun := false // a panic leaves it so
	defer func() {
		if !begun {
			s.stuck.Store(true)
		}
	}()
	tx, err = s.db.Begin(write)
	begun = true
	return tx, err
}

// classify maps what a transaction can meet to the contract's errors.
func classify(err error) error {
	var errno unix.Errno
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return kvstore.ErrFull
	case errors.Is(err, bberrors.ErrDatabaseNotOpen):
		return kvstore.ErrClosed
	case errors.As(err, &errno):
		return fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
	}
	return err
}

// Properties implements kvstore.Store.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{
		Name: "bolt", Durability: kvstore.Disk,
		Presence: true, ReportsAbsent: true, Checksums: true, DiscardExtents: true,
	}
}

// Servers returns the path.
func (s *Store) Servers() []string { return s.names }

// Control returns the records.
func (s *Store) Control() kvstore.Control { return control{s} }

// Join implements kvstore.Store. All keys are on the one server; a file that was
// exchanged is found when the pool is opened, not later.
func (s *Store) Join(p kvstore.Placement) error {
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	if err := s.usable(context.Background()); err != nil {
		return err
	}
	s.joined.Store(true)
	return nil
}

// Channel implements kvstore.Store.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if !s.joined.Load() {
		return nil, fmt.Errorf("channel before join: %w", kvstore.ErrInvalid)
	}
	return &channel{store: s}, nil
}

func layerName(l kvstore.LayerID) []byte { return binary.BigEndian.AppendUint32(nil, uint32(l)) }

func blockName(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// CreateLayer implements kvstore.Store.
func (s *Store) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.do(ctx, "create layer "+id.String(), s.update, func(tx *bbolt.Tx) error {
		claims := tx.Bucket(claimsBucket)
		if claims.Get(layerName(id)) != nil {
			return kvstore.ErrExists
		}
		if err := claims.Put(layerName(id), []byte("taken")); err != nil {
			return err
		}
		_, err := tx.Bucket(layersBucket).CreateBucketIfNotExists(layerName(id))
		return err
	})
}

// RemoveLayer implements kvstore.Store: the blocks go, the claim stays.
func (s *Store) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.do(ctx, "remove layer "+id.String(), s.update, func(tx *bbolt.Tx) error {
		err := tx.Bucket(layersBucket).DeleteBucket(layerName(id))
		if errors.Is(err, bberrors.ErrBucketNotFound) {
			return nil
		}
		return err
	})
}

// NextExtent implements kvstore.Store.
func (s *Store) NextExtent(ctx context.Context, id kvstore.LayerID, from uint64, data bool) (next uint64, err error) {
	err = s.do(ctx, "look for extents of layer "+id.String(), s.view, func(tx *bbolt.Tx) error {
		next = from
		b := tx.Bucket(layersBucket).Bucket(layerName(id))
		if b == nil {
			if data {
				return kvstore.ErrAbsent
			}
			return nil
		}
		c := b.Cursor()
		k, _ := c.Seek(blockName(from))
		if data {
			if k == nil {
				return kvstore.ErrAbsent
			}
			next = binary.BigEndian.Uint64(k)
			return nil
		}
		for ; k != nil && binary.BigEndian.Uint64(k) == next; k, _ = c.Next() {
			next++
		}
		return nil
	})
	return next, err
}

// Allocated implements kvstore.Store.
func (s *Store) Allocated(ctx context.Context, id kvstore.LayerID) (n uint64, err error) {
	err = s.do(ctx, "count blocks of layer "+id.String(), s.view, func(tx *bbolt.Tx) error {
		if b := tx.Bucket(layersBucket).Bucket(layerName(id)); b != nil {
			n = uint64(b.Stats().KeyN)
		}
		return nil
	})
	return n, err
}

// Usage implements kvstore.Store: the file, and the room below it. Pages that are
// free inside the file count as used: bbolt never gives them back.
func (s *Store) Usage(ctx context.Context) (u kvstore.Usage, err error) {
	err = s.do(ctx, "look at the room", s.view, func(tx *bbolt.Tx) error {
		var fs unix.Statfs_t
		if err := unix.Statfs(s.path, &fs); err != nil {
			return err
		}
		u = kvstore.Usage{Used: tx.Size(), Capacity: tx.Size() + int64(fs.Bavail)*fs.Bsize, Blocks: -1}
		return nil
	})
	return u, err
}

// Inspect implements kvstore.Store.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	return []kvstore.Finding{{
		Server: s.path, Severity: kvstore.Info,
		What: "one process at a time can open the file; each batch of writes waits for the disk",
		Fix:  "use file: where speed matters, memcached: or redis: where several machines share",
	}}, nil
}

// Silent and AnySilent implement kvstore.Store: a file always answers.
func (s *Store) Silent(kvstore.Key) bool { return false }

// AnySilent implements kvstore.Store.
func (s *Store) AnySilent() bool { return false }

// Rewinds implements kvstore.Store.
func (s *Store) Rewinds() uint64 { return 0 }

// Haunted implements kvstore.Store: what was given up was not begun.
func (s *Store) Haunted(kvstore.Key) bool { return false }

// Locate implements kvstore.Store.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	key := fmt.Sprintf("%x %x", layerName(k.Layer), blockName(k.Number))
	return kvstore.Location{Server: s.path, Key: key, Command: fmt.Sprintf("bbolt get --parse-format hex --format redacted '%s' layers %s", s.path, key)}
}

// Close implements kvstore.Store.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.stuck.Load() {
		return nil // it would wait for bbolt's locks; nothing is left to be written
	}
	return s.db.Close()
}

// do runs a transaction for a caller that wants an OpError.
func (s *Store) do(ctx context.Context, op string, run func(func(*bbolt.Tx) error) error, f func(*bbolt.Tx) error) error {
	err := s.usable(ctx)
	if err == nil {
		err = classify(run(f))
	}
	if err != nil {
		return &kvstore.OpError{Op: op, Server: s.path, Err: err}
	}
	return nil
}

// usable says why a call cannot be done now.
func (s *Store) usable(ctx context.Context) error {
	switch err := ctx.Err(); {
	case s.closed.Load():
		return kvstore.ErrClosed
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}
