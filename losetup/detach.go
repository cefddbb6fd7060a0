package losetup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	goloop "github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

const (
	// openerWait: udev and blkid open every device that changes, for a moment.
	// A process that has the device open for longer is a user. On a loaded machine
	// moments are long.
	openerWait = 2 * time.Second
	// claimWait bounds the wait for a claim that is no mount, swap or device: mkfs,
	// or another detach, which looks through all processes meanwhile.
	claimWait = 10 * time.Second
	// goneWait bounds the wait for the kernel to let go of the file when there is
	// a user that we cannot see.
	goneWait = 10 * time.Second
)

// Detach detaches a device and waits until it is really gone (losetup -d only
// arms the detaching of a device in use): ErrBusy at once if it is mounted or
// held, with who uses it. It undoes the queue settings. ErrNotAttached if what the
// caller saw is not attached any more, also where the device has another file since.
func Detach(ctx context.Context, d Device) error {
	_, err := interruptible(ctx, func() (struct{}, error) { return struct{}{}, detach(ctx, d) }, nil)
	return err
}

func detach(ctx context.Context, meant Device) error {
	number, err := numberOf(meant.Path)
	if err != nil {
		return err
	}
	if err := still(meant, number); err != nil {
		return err
	}
	dev, err := claim(ctx, meant, number)
	if err != nil {
		return err
	}
	// Until the claim somebody else may have detached it, and even attached another
	// file; from now on nobody attaches (loop_configure of drivers/block/loop.c claims).
	if err = still(meant, number); err == nil {
		err = clear(ctx, number, dev)
	}
	unix.Close(dev) // the kernel detaches here
	if err != nil {
		return err
	}
	reused, err := waitGone(ctx, meant, number)
	if err == nil && !reused {
		renew(number)
	}
	return err
}

// still says whether a device is the one that was meant.
func still(meant Device, number int) error {
	now, err := read(number)
	if err == nil && !now.is(meant) {
		err = fmt.Errorf("%s, which was %s: %w any more", meant.Path, meant.Backing, ErrNotAttached)
	}
	return err
}

// claim opens the device with O_EXCL. That fails while a file system, swap or
// device in any namespace claims the device, and keeps new ones away until the
// descriptor is closed. mkfs and other detaches claim it as well, for a moment.
func claim(ctx context.Context, meant Device, number int) (int, error) {
	for start := time.Now(); ; {
		dev, err := openDevice(ctx, number, unix.O_RDONLY|unix.O_EXCL)
		if err == nil {
			return dev, nil
		}
		if gone := still(meant, number); gone != nil {
			return -1, gone // detached by somebody else: who uses it now is none of its users
		}
		if !errors.Is(err, unix.EBUSY) {
			return -1, err
		}
		if users := claims(number); len(users) > 0 {
			return -1, busy(number, users)
		}
		if time.Since(start) > claimWait {
			return -1, busy(number, append(openers(number, -1), "claimed by a mount or device that is not visible from here"))
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return -1, err
		}
	}
}

// clear arms the detaching of a device that only dev uses.
func clear(ctx context.Context, number, dev int) error {
	if users := claims(number); len(users) > 0 {
		return busy(number, users)
	}
	for start := time.Now(); ; {
		users := openers(number, dev)
		if len(users) == 0 {
			break
		}
		if time.Since(start) > openerWait {
			return busy(number, users)
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	err := goloop.New(uint64(number), os.O_RDONLY).Detach()
	if err != nil && attached(number) {
		return fmt.Errorf("detach %s: %w", devicePath(number), err)
	}
	return nil
}

// waitGone waits until the kernel let go of the file. If somebody opened the
// device meanwhile, it disarms the detaching again: better in use and known than
// gone at some later time. reused: it is gone, and its number is another file's already.
func waitGone(ctx context.Context, meant Device, number int) (reused bool, err error) {
	pause := time.Millisecond
	for start := time.Now(); attached(number); pause = min(2*pause, 50*time.Millisecond) {
		// The kernel takes the file away first, then sysfs's directory, and counts on last:
		// only what is still attached, to a file, is another attachment.
		if now, err := read(number); err == nil && now.Backing != "" && !now.is(meant) && attached(number) {
			return true, nil
		}
		err := sleep(ctx, pause)
		if err == nil && time.Since(start) < goneWait {
			continue
		}
		if !attached(number) {
			break
		}
		disarm(number)
		if err == nil {
			err = busy(number, append(claims(number), openers(number, -1)...))
		}
		return false, err
	}
	return false, nil
}

// disarm takes back LOOP_CLR_FD. It does not ask for the status first: that would
// call into the backing file.
func disarm(number int) {
	d, err := read(number)
	if err != nil || d.partial {
		return
	}
	dev, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dev)
	i := info(d.Backing, Options{ReadOnly: d.ReadOnly, NoDirect: !d.DirectIO})
	_ = unix.IoctlLoopSetStatus64(dev, &i)
}

func busy(number int, users []string) error {
	if len(users) == 0 {
		users = []string{"by a process that is not visible from here"}
	}
	return fmt.Errorf("%s: %w: %s", devicePath(number), ErrBusy, strings.Join(users, ", "))
}

// Resize makes the device take the backing file's new size. The file must have
// it already; a file system on the device is grown by its own tool afterwards.
func Resize(device string) error {
	number, err := numberOf(device)
	if err != nil {
		return err
	}
	if _, err := read(number); err != nil {
		return err
	}
	dev, err := openDevice(context.Background(), number, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	if err := again(func() error { return unix.IoctlSetInt(dev, goloop.SetCapacity, 0) }); err != nil {
		return fmt.Errorf("resize %s: %w", devicePath(number), err)
	}
	return nil
}

// DetachLater lets the kernel detach a device once its last user is gone, and
// returns at once. It is for devices that no longer work, whose users nobody can
// end: Attach does not take such a device for an existing one.
func DetachLater(d Device) error {
	number, err := numberOf(d.Path)
	if err != nil {
		return err
	}
	dev, err := openDevice(context.Background(), number, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%s: %w", d.Path, ErrNotAttached)
	}
	if err != nil {
		return err
	}
	// A device that is open is not detached, so it stays what it is found to be.
	defer unix.Close(dev)
	if err := still(d, number); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(dev, goloop.ClrFd, 0); err != nil && attached(number) {
		return fmt.Errorf("detach %s: %w", d.Path, err)
	}
	return nil
}
