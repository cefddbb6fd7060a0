package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

func TestStatusOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{kvstore.ErrFull, syscall.ENOSPC},
		{&kvstore.OpError{Op: "write", Err: kvstore.ErrFull}, syscall.ENOSPC},
		{fmt.Errorf("page: %w", &kvstore.OpError{Op: "read", Err: kvstore.ErrCorrupt}), syscall.EIO},
		{fmt.Errorf("%w by host (pid 3)", pool.ErrHeld), syscall.EBUSY},
		{volume.ErrInUse, syscall.EBUSY},
		{volume.ErrReadOnly, syscall.EROFS},
		{pool.ErrNoVolume, syscall.ENOENT},
		{pool.ErrVolumeExists, syscall.EEXIST},
		{pool.ErrBadName, syscall.EINVAL},
		{volume.ErrLost, syscall.EIO},
		{kvstore.ErrTimeout, syscall.EIO},
		{syscall.EINTR, syscall.EIO},
		{errors.New("unforeseen"), syscall.EIO},
	} {
		if got := statusOf(c.err); got != fuse.Status(c.want) {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
	for _, s := range statuses {
		if s.status == fuse.EINTR || s.status == fuse.EAGAIN || s.status == fuse.ENOSYS {
			t.Errorf("%v becomes %v, which the kernel must never see", s.err, s.status)
		}
	}
}

// TestUnserved: what the kernel answers when a daemon is gone, or was just killed.
func TestUnserved(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOTCONN, syscall.ECONNABORTED, syscall.ECANCELED} {
		if !Unserved(&os.PathError{Op: "statfs", Path: "/mnt", Err: errno}) {
			t.Errorf("%v is not told apart", errno)
		}
	}
	for _, err := range []error{nil, syscall.EIO, syscall.ENODEV, context.Canceled} {
		if Unserved(err) {
			t.Errorf("%v means that nobody serves", err)
		}
	}
}
