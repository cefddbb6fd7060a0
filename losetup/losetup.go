// Package losetup attaches files to loop devices the way a disk wants it:
// 4096-byte blocks, direct I/O, verified, with the races of many programs that
// use loop devices at once handled. It knows nothing of kvbfs.
package losetup

import (
	"context"
	"errors"
)

var (
	// ErrNoLoop: the machine has no loop driver or no right to use it.
	ErrNoLoop = errors.New("loop devices are not available here")
	// ErrNotAttached: the device has no backing file.
	ErrNotAttached = errors.New("not attached")
	// ErrBuffered: the kernel refused direct I/O and would run buffered.
	ErrBuffered = errors.New("kernel refused direct I/O")
	// ErrBusy: the device is in use (mounted, or opened by a process).
	ErrBusy = errors.New("loop device is in use")
)

// Options of Attach.
type Options struct {
	ReadOnly bool
	// NoDirect allows buffered I/O (queue depth 1, double caching).
	NoDirect bool
	// Warn is told of queue settings that the kernel refused. nil: discarded.
	Warn func(msg string)
}

// Device is an attached loop device, as sysfs tells.
type Device struct {
	Path      string `json:"device"`       // /dev/loop3
	Backing   string `json:"backing_file"` // as the kernel spells it
	Size      int64  `json:"size"`         // bytes
	DirectIO  bool   `json:"direct_io"`
	ReadOnly  bool   `json:"read_only"`
	BlockSize int    `json:"block_size"`
	Autoclear bool   `json:"autoclear"`
}

// Attach attaches file and returns the verified device. If the file is attached
// already with the same options, that device is returned and existing is true.
func Attach(ctx context.Context, file string, opt Options) (d Device, existing bool, err error) {
	panic("unwritten")
}

// Detach detaches a device and waits until it is really gone (losetup -d only
// arms the detaching of a device in use): ErrBusy at once if it is mounted or
// held, with who uses it. It undoes the queue settings.
func Detach(ctx context.Context, device string) error { panic("unwritten") }

// List returns all attached devices; Find those of one file. Both read sysfs
// only and never touch the backing files.
func List() ([]Device, error)            { panic("unwritten") }
func Find(file string) ([]Device, error) { panic("unwritten") }

// Get returns one device: ErrNotAttached if it has no backing file.
func Get(device string) (Device, error) { panic("unwritten") }

// Resize makes the device take the backing file's new size.
func Resize(device string) error { panic("unwritten") }

// Users names the mounts and processes that use a device, for messages.
func Users(device string) []string { panic("unwritten") }
