package fusefs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Statuses that go-fuse has no names for.
const (
	eexist       = fuse.Status(syscall.EEXIST)
	enospc       = fuse.Status(syscall.ENOSPC)
	enxio        = fuse.Status(syscall.ENXIO)
	enametoolong = fuse.Status(syscall.ENAMETOOLONG)
	eopnotsupp   = fuse.Status(syscall.EOPNOTSUPP)
	enotempty    = fuse.Status(syscall.ENOTEMPTY)
)

// Unserved says whether err is what the kernel answers on a mount that nobody serves
// any more: its connection is gone (ENOTCONN) or was while the request was under way
// (ECONNABORTED; over io_uring also ECANCELED, of a request that was being handed to a
// process that was killed: fuse_uring_send_in_task, fs/fuse/dev_uring.c).
func Unserved(err error) bool {
	return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.ECANCELED)
}

// errPanic is what the calls of a batch get when its handler panicked.
var errPanic = kvstore.ErrPanic

// statuses maps errors to what programs get to see. Order matters: the first
// that errors.Is finds wins, and a full store is told as such also where
// something else is wrapped with it.
//
// What is not listed is EIO: an error about the data, an outage that was not
// waited for, or one that nobody foresaw. EINTR and EAGAIN are never given: the
// kernel and loop devices do not try again (RELIABILITY 1.9).
var statuses = []struct {
	err    error
	status fuse.Status
}{
	{kvstore.ErrFull, enospc},
	{volume.ErrReadOnly, fuse.EROFS},
	{volume.ErrOvertaken, fuse.EIO},
	{volume.ErrInUse, fuse.EBUSY},
	{pool.ErrHeld, fuse.EBUSY},
	{pool.ErrNoVolume, fuse.ENOENT},
	{pool.ErrNoPool, fuse.ENOENT},
	{pool.ErrVolumeExists, eexist},
	{pool.ErrBadName, fuse.EINVAL},
	{pool.ErrBadSize, fuse.EINVAL},
	{volume.ErrShrink, fuse.EPERM},
	// A disk that is written beyond its end says so with ENOSPC. LSEEK maps this
	// error itself.
	{volume.ErrOutside, enospc},
	// Errors about the data and outages: listed so that a test sees that they
	// were thought of.
	{volume.ErrLost, fuse.EIO},
	{volume.ErrVolumeAborted, fuse.EIO},
	{volume.ErrUnaccepted, fuse.EIO},
	{kvstore.ErrCorrupt, fuse.EIO},
	{kvstore.ErrServerLost, fuse.EIO},
	{kvstore.ErrTimeout, fuse.EIO},
	{kvstore.ErrAborted, fuse.EIO},
	{kvstore.ErrUnreachable, fuse.EIO},
	{kvstore.ErrFenced, fuse.EIO},
	{kvstore.ErrClosed, fuse.EIO},
	{context.Canceled, fuse.EIO},
	{context.DeadlineExceeded, fuse.EIO},
	{errPanic, fuse.EIO},
}

// statusOf is the one place where errors become errno.
func statusOf(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for i := range statuses {
		if errors.Is(err, statuses[i].err) {
			return statuses[i].status
		}
	}
	return fuse.EIO
}
