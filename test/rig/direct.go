package rig

import (
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockSize is the block of kvbfs.
const BlockSize = 4096

// File is a file or device that is read and written past the page cache, by
// plain system calls: no poller, no buffering, errors as errno.
type File struct {
	fd   int
	Path string
}

// OpenDirect opens with O_DIRECT for reading and writing.
func OpenDirect(path string) (*File, error) { return open(path, unix.O_RDWR|unix.O_DIRECT) }

// OpenPlain opens without O_DIRECT, for unaligned access.
func OpenPlain(path string) (*File, error) { return open(path, unix.O_RDWR) }

func open(path string, flags int) (*File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &File{fd: fd, Path: path}, nil
}

// Direct opens with O_DIRECT and closes at the end of the test.
func Direct(t testing.TB, path string) *File {
	t.Helper()
	f, err := OpenDirect(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// ReadAt reads all of b or fails.
func (f *File) ReadAt(b []byte, off int64) error {
	n, err := unix.Pread(f.fd, b, off)
	if err == nil && n != len(b) {
		return fmt.Errorf("short read at %d: %d of %d", off, n, len(b))
	}
	return err
}

// WriteAt writes all of b or fails.
func (f *File) WriteAt(b []byte, off int64) error {
	n, err := unix.Pwrite(f.fd, b, off)
	if err == nil && n != len(b) {
		return fmt.Errorf("short write at %d: %d of %d", off, n, len(b))
	}
	return err
}

// Sync is fsync.
func (f *File) Sync() error { return unix.Fsync(f.fd) }

// Punch makes a hole, Zero writes zeros without data.
func (f *File) Punch(off, n int64) error {
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Zero zeroes a range.
func (f *File) Zero(off, n int64) error {
	return f.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// fallocate is fallocate(2), again if a signal interrupts it, as Go's runtime may.
func (f *File) fallocate(mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(f.fd, mode, off, n); err != unix.EINTR {
			return err
		}
	}
}

// Close closes; twice does nothing.
func (f *File) Close() error {
	if f.fd < 0 {
		return nil
	}
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

// Aligned returns n bytes at an address that O_DIRECT accepts.
func Aligned(n int) []byte {
	raw := make([]byte, n+BlockSize)
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & (BlockSize - 1))
	return raw[skip : skip+n : skip+n]
}
