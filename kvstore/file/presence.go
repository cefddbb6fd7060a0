package file

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Presence is asked of the file system with SEEK_DATA and SEEK_HOLE, not with
// st_blocks: file systems preallocate, count their own metadata in, and compress.

// NextExtent finds the next data or hole. A layer that was removed has no data.
func (s *Store) NextExtent(ctx context.Context, id kvstore.LayerID, from uint64, data bool) (uint64, error) {
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	l, err := s.layer(id)
	switch {
	case err == errRemoved && data:
		return 0, kvstore.ErrAbsent
	case err == errRemoved:
		return from, nil
	case err != nil:
		return 0, s.failed("look for extents of layer "+id.String(), "", err)
	}
	n, err := l.next(from, data)
	if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
		err = s.failed("look for extents of layer "+id.String(), "", err)
	}
	return n, err
}

// Allocated adds up the extents.
func (s *Store) Allocated(ctx context.Context, id kvstore.LayerID) (uint64, error) {
	total := uint64(0)
	for at := uint64(0); ; {
		begin, err := s.NextExtent(ctx, id, at, true)
		if errors.Is(err, kvstore.ErrAbsent) {
			return total, nil
		}
		if err != nil {
			return 0, err
		}
		if at, err = s.NextExtent(ctx, id, begin, false); err != nil {
			return 0, err
		}
		total += at - begin
	}
}

// next finds the next block that is data, or that is a hole as a whole: a block
// of which only a part is data, on file systems with smaller blocks, is data.
func (l *layer) next(from uint64, data bool) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.fd < 0 {
		return 0, kvstore.ErrClosed
	}
	for from < maxBlocks {
		off := int64(from) * kvstore.BlockSize
		begin, err := unix.Seek(l.fd, off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO && data:
			return 0, kvstore.ErrAbsent
		case err == unix.ENXIO:
			return from, nil
		case err != nil:
			return 0, classify(err, kvstore.ErrUnreachable)
		case data:
			return max(from, uint64(begin)/kvstore.BlockSize), nil
		case begin-off >= kvstore.BlockSize:
			return from, nil
		}
		end, err := unix.Seek(l.fd, begin, unix.SEEK_HOLE)
		if err == unix.ENXIO { // it was cut off meanwhile
			continue
		}
		if err != nil {
			return 0, classify(err, kvstore.ErrUnreachable)
		}
		from = max(from+1, (uint64(end)+kvstore.BlockSize-1)/kvstore.BlockSize)
	}
	if data {
		return 0, kvstore.ErrAbsent
	}
	return from, nil
}
