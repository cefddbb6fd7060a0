package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// maxBlocks is how many blocks a layer's file can have: the largest offset of
// the kernel, which is signed.
const maxBlocks = math.MaxInt64 / kvstore.BlockSize

// layer is an open layer file. Volumes are few, so files stay open until the
// layer is removed: closing one that has unflushed writes would also lose the
// kernel's promise to report their failure.
type layer struct {
	id     kvstore.LayerID
	path   string
	noSync bool

	mu sync.RWMutex // guards fd: held for reading while it is used
	fd int          // -1: closed

	// noPunch is set when the file system turned out not to punch holes:
	// discards then write zeros.
	noPunch atomic.Bool
	// noWait is set when it does not know reads that do not wait.
	noWait atomic.Bool

	turns [turns]turn // see whole.go

	flushing sync.Mutex // guards broken
	broken   error      // the first failed fdatasync
}

func (s *Store) layerPath(id kvstore.LayerID, suffix string) string {
	return filepath.Join(s.dir, layerDir, id.String()+suffix)
}

// errRemoved is ErrServerLost with the reason that RemoveLayer was called.
var errRemoved = fmt.Errorf("layer was removed: %w", kvstore.ErrServerLost)

// layer returns the open file of a layer. A layer without a file was removed
// (errRemoved), or else the store was emptied: its blocks are lost, not holes.
func (s *Store) layer(id kvstore.LayerID) (*layer, error) {
	s.mu.RLock()
	l, closed := s.layers[id], s.closed
	s.mu.RUnlock()
	switch {
	case closed:
		return nil, kvstore.ErrClosed
	case l != nil:
		return l, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, kvstore.ErrClosed
	}
	if l := s.layers[id]; l != nil {
		return l, nil
	}
	path := s.layerPath(id, ".blk")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		if _, err := os.Lstat(s.layerPath(id, ".gone")); err == nil {
			return nil, errRemoved
		}
	}
	if err != nil {
		return nil, classify(&fs.PathError{Op: "open", Path: path, Err: err}, kvstore.ErrUnreachable)
	}
	l = &layer{id: id, path: path, fd: fd, noSync: s.opt.NoSync}
	s.layers[id] = l
	return l, nil
}

// close closes the file; later use finds fd -1.
func (l *layer) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		_ = unix.Close(l.fd) // what it could report, a flush reports
		l.fd = -1
	}
}

// flush makes the layer's writes stable. The kernel reports a failed write-back
// once and then calls the pages clean, so a failure is remembered until the
// store is opened anew. Flushes of one layer take turns: of two at once only one
// would be told of the failure.
func (l *layer) flush() error {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	if l.broken != nil {
		return l.broken
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.fd < 0 {
		return errRemoved
	}
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return classify(err, kvstore.ErrUnreachable)
	}
	if st.Nlink == 0 {
		return fmt.Errorf("%s was deleted: %w", l.path, kvstore.ErrServerLost)
	}
	if l.noSync {
		return nil
	}
	if err := fdatasync(l.fd); err != nil {
		l.broken = fmt.Errorf("fdatasync of %s failed, writes may be lost: %w", l.path, classify(err, kvstore.ErrUnreachable))
	}
	return l.broken
}

// fdatasync is a variable so that a test can let it fail.
var fdatasync = func(fd int) error {
	for {
		if err := unix.Fdatasync(fd); err != unix.EINTR {
			return err
		}
	}
}

// CreateLayer makes the layer's file, which is the claim of its id.
func (s *Store) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	err := s.locked(ctx, true, func() error {
		if _, err := os.Lstat(s.layerPath(id, ".gone")); err == nil {
			return kvstore.ErrExists
		}
		path := s.layerPath(id, ".blk")
		err := s.createFile(path)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			_ = os.Remove(path) // a claim that was not made stable is none
		}
		return err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		err = kvstore.ErrExists
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EROFS):
		err = classify(err, kvstore.ErrUnreachable)
	}
	return s.failed("create layer "+id.String(), "", err)
}

// createFile makes an empty file with a stable name.
func (s *Store) createFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if !s.opt.NoSync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), s.syncDir(filepath.Dir(path)))
}

// RemoveLayer deletes the layer's file with all blocks and leaves a mark that
// keeps the id from being used again. Repeating it is success.
func (s *Store) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	err := s.locked(ctx, false, func() error {
		// The mark first: a crash in between leaves both, and the id taken.
		if err := s.createFile(s.layerPath(id, ".gone")); err != nil && !errors.Is(err, fs.ErrExist) {
			return classify(err, kvstore.ErrUnreachable)
		}
		if err := os.Remove(s.layerPath(id, ".blk")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return classify(err, kvstore.ErrUnreachable)
		}
		s.mu.Lock()
		l := s.layers[id]
		delete(s.layers, id)
		s.mu.Unlock()
		if l != nil {
			l.close()
		}
		return classify(s.syncDir(filepath.Join(s.dir, layerDir)), kvstore.ErrUnreachable)
	})
	if err != nil && !errors.Is(err, kvstore.ErrAbsent) { // no directory: no layer
		return s.failed("remove layer "+id.String(), "", err)
	}
	return nil
}
