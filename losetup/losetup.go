// Package losetup attaches files to loop devices the way a disk wants it:
// 4096-byte blocks, direct I/O, verified, with the races of many programs that
// use loop devices at once handled. It knows nothing of kvbfs.
//
// # The nouns
//
//   - The file: what is attached; the kernel calls it the backing file and
//     spells its path itself, after symlinks. A file in a directory that was
//     lazily unmounted is spelled relative to that mount.
//   - The device: /dev/loopN. N is its number. The device exists (sysfs), has a
//     node (/dev, perhaps absent in a container) and is attached or free.
//   - The control device: /dev/loop-control, which gives free numbers.
//
// # The flow
//
// Attach opens the file, locks it, looks for an attachment that exists already,
// then takes free numbers until the kernel gives one to us and not to somebody
// else, locks the device, configures it in one call (older kernels: in five,
// configure.go), reads back what the kernel made of it, and sets the queue
// (queue.go). Detach looks whether the device still is what its caller saw, looks
// for users (users.go), detaches, waits until the kernel let go of the file, and
// gives the device its default queue again.
//
// What is attached is read from sysfs only (sysfs.go): LOOP_GET_STATUS64 asks
// the backing file for its attributes and would hang on a FUSE server that
// hangs.
//
// # Locks, in their order
//
// An exclusive flock on the file, on a description of its own, for the time of
// Attach, so that two attaches of one file make one device. Then an exclusive
// flock on the device: udev and systemd take the same one before they probe or
// configure a block device. Both are given up by the kernel if we die.
//
// Nothing here uses os.File for files and devices: Go would ask a FUSE file
// whether it can be polled.
package losetup

import (
	"context"
	"errors"
	"time"
)

// BlockSize of every device that Attach makes, in bytes.
const BlockSize = 4096

var (
	// ErrNoLoop: the machine has no loop driver or no right to use it.
	ErrNoLoop = errors.New("loop devices are not available here")
	// ErrNotAttached: the device has no backing file.
	ErrNotAttached = errors.New("not attached")
	// ErrBuffered: the kernel refused direct I/O and would run buffered.
	ErrBuffered = errors.New("kernel refused direct I/O")
	// ErrBusy: the device is in use (mounted, or opened by a process).
	ErrBusy = errors.New("loop device is in use")
	// ErrConflict: the file is attached already, with other options.
	ErrConflict = errors.New("attached already in another way")
	// ErrBadSize: the file is empty or not a whole number of blocks.
	ErrBadSize = errors.New("unusable size")
)

// Options of Attach.
type Options struct {
	ReadOnly bool
	// NoDirect allows buffered I/O (queue depth 1, double caching).
	NoDirect bool
	// Warn is told of queue settings that the kernel refused. nil: discarded.
	// It is called before Attach returns, from one goroutine.
	Warn func(msg string)
}

// Device is an attached loop device, as sysfs tells.
type Device struct {
	Path      string `json:"device"`       // /dev/loop3
	Backing   string `json:"backing_file"` // as the kernel spells it
	Size      int64  `json:"size"`         // bytes
	DirectIO  bool   `json:"direct_io"`
	ReadOnly  bool   `json:"read_only"`
	BlockSize int    `json:"block_size"` // bytes
	Autoclear bool   `json:"autoclear"`  // goes away when its last user does
	// ReadAhead is how far the kernel reads ahead of buffered readers, in KiB.
	ReadAhead int `json:"read_ahead_kb"`
	// Deleted: the backing file has no name any more.
	Deleted bool `json:"deleted,omitempty"`

	partial bool // begins after the file's start or ends before its end
	// seq is the kernel's number of the attachment (diskseq, Linux 5.15); 0: it has none.
	seq int64
}

// is says whether two looks at a device saw the same attachment. Where they have no
// numbers the path must do: it is the same for a file that took another one's place, and
// changes with the mount of the file.
func (d Device) is(o Device) bool {
	if d.seq != 0 && o.seq != 0 {
		return d.seq == o.seq
	}
	return d.Backing == o.Backing
}

// grace is how long Attach and Detach, once cancelled, wait for a system call
// that may be about to return. One that waits for a hung file server is left
// behind; should it come back, what it made is undone.
const grace = time.Second

// interruptible runs fn and returns its result, or ctx's error if fn is stuck in
// a system call a while after ctx ended. fn looks at ctx itself between system
// calls. abandoned is called with the result of an fn that came back too late.
func interruptible[T any](ctx context.Context, fn func() (T, error), abandoned func(T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	done := make(chan result) // unbuffered: a result is taken by one side only
	gaveUp := make(chan struct{})
	go func() {
		v, err := fn()
		select {
		case done <- result{v, err}:
		case <-gaveUp:
			if abandoned != nil {
				abandoned(v, err)
			}
		}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case r := <-done:
		return r.v, r.err
	case <-t.C:
		close(gaveUp)
		return zero, ctx.Err()
	}
}

// sleep waits, or returns ctx's error at once when it ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
