package losetup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	goloop "github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

// noLoopFix is what to do about ErrNoLoop.
const noLoopFix = "run `modprobe loop` as root; in a container pass --device /dev/loop-control and the /dev/loopN nodes with CAP_SYS_ADMIN, or work without loop devices (--rootless)"

// freeNumber asks the kernel for a free device; it makes one if all are taken.
// (go-losetup's GetFree cannot see an error: it compares an unsigned number
// with 0.)
func freeNumber() (int, error) {
	ctl, err := unix.Open(goloop.LoopControlPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, noLoop(goloop.LoopControlPath, err)
	}
	defer unix.Close(ctl)
	n, err := unix.IoctlRetInt(ctl, goloop.CtlGetFree)
	if err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTTY) {
			return 0, noLoop(goloop.LoopControlPath, err)
		}
		return 0, fmt.Errorf("get a free loop device: %w", err)
	}
	return n, nil
}

func noLoop(path string, err error) error {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: %s: %w: this needs root (or --rootless)", ErrNoLoop, path, err)
	}
	return fmt.Errorf("%w: %s: %w: %s", ErrNoLoop, path, err, noLoopFix)
}

// nodeWait is how long a node may be absent although the kernel has the device:
// another process may be removing and adding it just now (Detach does), and on
// /dev without devtmpfs a daemon makes the nodes.
const nodeWait = 200 * time.Millisecond

// openDevice opens the node of a device, made by mknod where nobody else does.
// ENXIO, ENODEV and EBUSY mean: try another number.
func openDevice(ctx context.Context, number, flags int) (int, error) {
	path := devicePath(number)
	for start := time.Now(); ; {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		switch {
		case err == nil:
			return fd, checkNode(fd, number)
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return -1, noLoop(path, err)
		case !errors.Is(err, unix.ENOENT):
			return -1, fmt.Errorf("%s: %w", path, err)
		}
		if !exists(number) {
			return -1, fmt.Errorf("%s: %w", path, unix.ENXIO)
		}
		if time.Since(start) > nodeWait {
			if err := makeNode(path, number); err != nil {
				return -1, err
			}
			start = time.Now()
			continue
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return -1, err
		}
	}
}

// makeNode makes a node as devtmpfs would.
func makeNode(path string, number int) error {
	err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(goloop.Major, uint32(number))))
	if err == nil || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return fmt.Errorf("%w: the kernel offers %s but its node is missing and could not be made (%w): run `mknod %s b %d %d` as root, or pass the host's /dev to the container",
		ErrNoLoop, path, err, path, goloop.Major, number)
}

// checkNode refuses (and closes) a stale node that names another device.
func checkNode(fd, number int) error {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != goloop.Major || unix.Minor(st.Rdev) != uint32(number)) {
		err = fmt.Errorf("%w: %s is not block device %d:%d: remove it and run `mknod %s b %d %d`",
			ErrNoLoop, devicePath(number), goloop.Major, number, devicePath(number), goloop.Major, number)
	}
	if err != nil {
		unix.Close(fd)
	}
	return err
}

// renew gives a free device its default queue: the settings outlive a detach, and
// the next user may have a plain disk image. A device that somebody else took
// meanwhile, or holds open, is his.
func renew(number int) {
	device := goloop.New(uint64(number), os.O_RDWR)
	for range 10 {
		if attached(number) {
			return
		}
		if device.Remove() == nil {
			// Where somebody else was quicker to add it, that is as good.
			_ = device.Add()
			return
		}
		if !exists(number) {
			return
		}
		time.Sleep(5 * time.Millisecond) // udev looks at every device that changes
	}
	if !attached(number) {
		untune(number)
	}
}
