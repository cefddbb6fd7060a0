package losetup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	goloop "github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

// attempts bounds the race for a free device: each loss means that another
// program attached something.
const attempts = 64

// Attach attaches file and returns the verified device. If the file is attached
// already with the same options, that device is returned and existing is true;
// with other options, ErrConflict. Any number of attaches may run at once, also
// in other processes. When ctx ends, what was made so far is undone.
//
// The process that serves the file must not call it (package comment).
func Attach(ctx context.Context, file string, opt Options) (d Device, existing bool, err error) {
	type result struct {
		d        Device
		existing bool
	}
	r, err := interruptible(ctx, func() (result, error) {
		d, existing, err := attach(ctx, file, opt)
		return result{d, existing}, err
	}, func(r result, err error) {
		if err == nil && !r.existing {
			_ = detach(context.Background(), r.d)
		}
	})
	return r.d, r.existing, err
}

func attach(ctx context.Context, file string, opt Options) (Device, bool, error) {
	image, size, err := openImage(file, opt.ReadOnly)
	if err != nil {
		return Device{}, false, err
	}
	defer unix.Close(image)
	// The kernel's own spelling, which sysfs will show, without asking the file.
	spelled, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(image))
	if err != nil {
		return Device{}, false, err
	}
	unlock, err := lockImage(ctx, file)
	if err != nil {
		return Device{}, false, err
	}
	defer unlock()
	d, found, err := findExisting(ctx, spelled, opt)
	if err != nil || found {
		return d, found, err
	}
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return Device{}, false, err
		}
		number, err := freeNumber()
		if err == nil {
			d, err = attachTo(ctx, number, image, size, spelled, opt)
		}
		if err == nil {
			return d, false, nil
		}
		if !tryOther(err) || errors.Is(err, ErrNoLoop) {
			return Device{}, false, fmt.Errorf("attach %s: %w", file, err)
		}
		if try == attempts-1 {
			return Device{}, false, fmt.Errorf("attach %s: no free loop device in %d attempts, other programs were quicker each time: %w", file, attempts, err)
		}
		// Longer pauses as it goes on, never the same for two that compete.
		if err := sleep(ctx, time.Duration(rand.IntN(2000*(try+1)))*time.Microsecond); err != nil {
			return Device{}, false, err
		}
	}
}

// openImage opens the file as the device will use it and returns its size.
func openImage(file string, readOnly bool) (fd int, size int64, err error) {
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	fd, err = openFile(file, flags)
	if err != nil {
		return -1, 0, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		err = &fs.PathError{Op: "stat", Path: file, Err: err}
	} else if st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s is not a regular file", file)
	} else if st.Size == 0 {
		err = fmt.Errorf("%s: %w: it is empty", file, ErrBadSize)
	} else if st.Size%BlockSize != 0 {
		err = fmt.Errorf("%s: %w: %d bytes are not a multiple of %d", file, ErrBadSize, st.Size, BlockSize)
	}
	if err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	return fd, st.Size, nil
}

func openFile(file string, flags int) (int, error) {
	for {
		fd, err := unix.Open(file, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil {
			return fd, nil
		}
		if errors.Is(err, unix.EACCES) && os.Geteuid() == 0 {
			// Root passes every permission check but that of FUSE.
			err = fmt.Errorf("%w (a FUSE mount of another user? it must be mounted with allow_other)", err)
		}
		return -1, &fs.PathError{Op: "open", Path: file, Err: err}
	}
}

// lockWait bounds how long Attach waits for another program's lock on the file.
const lockWait = 30 * time.Second

// lockImage keeps other attaches of the same file out. The lock is on a
// description of its own: the one that the device gets stays open for as long as
// the device lives, and its locks with it.
func lockImage(ctx context.Context, file string) (unlock func(), err error) {
	fd, err := openFile(file, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Since(start) > lockWait {
			err = fmt.Errorf("%s: another program holds a lock on it", file)
		} else if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			if err = sleep(ctx, time.Duration(1000+rand.IntN(4000))*time.Microsecond); err == nil {
				continue
			}
		}
		unix.Close(fd)
		return nil, err
	}
}

// findExisting looks for a device of the file that serves as well as a new one.
// Any other device of the same file is refused: each has its own page cache, and
// two would destroy what is on them.
func findExisting(ctx context.Context, spelled string, opt Options) (Device, bool, error) {
	for start := time.Now(); ; {
		list, err := findSpelled(spelled)
		if err != nil || len(list) == 0 {
			return Device{}, false, err
		}
		d := list[0]
		var problem string
		switch {
		case d.Autoclear:
			// Somebody is detaching it; it goes when its last user does.
			if time.Since(start) < time.Second {
				if err := sleep(ctx, 10*time.Millisecond); err != nil {
					return Device{}, false, err
				}
				continue
			}
			problem = "is about to be detached once its users are gone"
		case d.partial:
			problem = "covers a part of the file only"
		case d.ReadOnly && !opt.ReadOnly:
			problem = "is read-only"
		case !d.ReadOnly && opt.ReadOnly:
			problem = "is writable"
		case !d.DirectIO && !opt.NoDirect:
			problem = "has no direct I/O"
		case d.BlockSize != BlockSize:
			problem = fmt.Sprintf("has blocks of %d bytes", d.BlockSize)
		default:
			return d, true, nil
		}
		return Device{}, false, fmt.Errorf("%s: %w: %s %s; detach it first", spelled, ErrConflict, d.Path, problem)
	}
}

// attachTo attaches to one device, which nobody else uses, and verifies it.
func attachTo(ctx context.Context, number, image int, size int64, spelled string, opt Options) (d Device, err error) {
	dev, err := openDevice(ctx, number, unix.O_RDWR)
	if err != nil {
		return Device{}, err
	}
	defer unix.Close(dev)
	if err := unix.Flock(dev, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return Device{}, fmt.Errorf("lock %s: %w", devicePath(number), err)
	}
	if err := configure(dev, image, spelled, opt); err != nil {
		return Device{}, fmt.Errorf("%s: %w", devicePath(number), err)
	}
	d, err = verify(number, size, opt)
	if err == nil {
		tune(number, opt.ReadOnly, opt.Warn)
		d, err = verify(number, size, opt)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		// Takes effect when dev, the only opener, is closed.
		_ = unix.IoctlSetInt(dev, goloop.ClrFd, 0)
		return Device{}, err
	}
	return d, nil
}

// verify reads back what the kernel made of it: it falls back to buffered I/O
// and to a size of 0 without a word.
func verify(number int, size int64, opt Options) (Device, error) {
	d, err := read(number)
	if err != nil {
		return Device{}, err
	}
	switch {
	case d.Size == 0:
		return Device{}, fmt.Errorf("%w: the kernel sees 0 bytes instead of %d: may root see this FUSE mount? mount it with allow_other", ErrBadSize, size)
	case d.Size != size:
		return Device{}, fmt.Errorf("%w: the kernel sees %d bytes instead of %d", ErrBadSize, d.Size, size)
	case !d.DirectIO && !opt.NoDirect:
		return Device{}, fmt.Errorf("%w: the file system below cannot do it in blocks of %d bytes", ErrBuffered, BlockSize)
	case d.BlockSize != BlockSize:
		return Device{}, fmt.Errorf("the kernel made blocks of %d bytes instead of %d", d.BlockSize, BlockSize)
	case d.ReadOnly != opt.ReadOnly:
		return Device{}, fmt.Errorf("the kernel made the device read-only: %t, asked for: %t", d.ReadOnly, opt.ReadOnly)
	}
	return d, nil
}
