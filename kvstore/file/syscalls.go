package file

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadv and pwritev take iovecs that are ready: the versions of x/sys build new
// ones for each call, on the heap if they are many. Interrupted calls are
// repeated.

func preadv(fd int, iov []unix.Iovec, off int64) (int, error) {
	return vectored(unix.SYS_PREADV, fd, iov, off, 0)
}

func pwritev(fd int, iov []unix.Iovec, off int64) (int, error) {
	return vectored(unix.SYS_PWRITEV, fd, iov, off, 0)
}

// preadvCached reads what is in the page cache: EAGAIN or less than asked where
// it would have to wait, EOPNOTSUPP where the file system cannot tell.
func preadvCached(fd int, iov []unix.Iovec, off int64) (int, error) {
	return vectored(unix.SYS_PREADV2, fd, iov, off, unix.RWF_NOWAIT)
}

func vectored(call uintptr, fd int, iov []unix.Iovec, off int64, flags uintptr) (int, error) {
	// The kernel shifts the high half away where a long holds all 64 bits.
	low, high := uintptr(off), uintptr(uint64(off)>>32)
	for {
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), low, high, flags)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// punch makes a hole. It is a variable so that a test can let it fail.
var punch = func(fd int, off, size int64) error {
	for {
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size); err != unix.EINTR {
			return err
		}
	}
}

var zeros [256 << 10]byte

// zero writes zeros up to the end of the file: what discards become on a file
// system without holes. It frees nothing.
func zero(fd int, off, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	for end := min(off+size, st.Size); off < end; {
		n, err := unix.Pwrite(fd, zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil && err != unix.EINTR {
			return err
		}
		off += int64(max(n, 0))
	}
	return nil
}
