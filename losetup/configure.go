package losetup

import (
	"errors"
	"fmt"
	"time"

	goloop "github.com/freddierice/go-losetup"
	"golang.org/x/sys/unix"
)

// configure attaches the open file image to the open device dev. The errors of
// tryOther mean that somebody else was quicker.
func configure(dev, image int, file string, opt Options) error {
	cfg := unix.LoopConfig{Fd: uint32(image), Size: BlockSize, Info: info(file, opt)}
	err := unix.IoctlLoopConfigure(dev, &cfg)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return configureOld(dev, image, file, opt)
	}
	return err
}

func info(file string, opt Options) unix.LoopInfo64 {
	var i unix.LoopInfo64
	if opt.ReadOnly {
		i.Flags |= goloop.FlagsReadOnly
	}
	if !opt.NoDirect {
		i.Flags |= goloop.FlagsDirectIO
	}
	copy(i.File_name[:goloop.NameSize-1], file)
	return i
}

// configureOld does the same in steps, for kernels before 5.8. Between the first
// step and the last the device is seen with the wrong block size; the flock that
// Attach holds keeps udev away meanwhile.
func configureOld(dev, image int, file string, opt Options) (err error) {
	if err := unix.IoctlSetInt(dev, goloop.SetFd, image); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.IoctlSetInt(dev, goloop.ClrFd, 0)
		}
	}()
	i := info(file, opt)
	i.Flags &^= goloop.FlagsDirectIO // not settable this way
	if err := again(func() error { return unix.IoctlLoopSetStatus64(dev, &i) }); err != nil {
		return fmt.Errorf("set status: %w", err)
	}
	if err := again(func() error { return unix.IoctlSetInt(dev, unix.LOOP_SET_BLOCK_SIZE, BlockSize) }); err != nil {
		return fmt.Errorf("set block size %d: %w", BlockSize, err)
	}
	if opt.NoDirect {
		return nil
	}
	if err := again(func() error { return unix.IoctlSetInt(dev, goloop.SetDirectIO, 1) }); err != nil {
		return fmt.Errorf("%w: %w", ErrBuffered, err)
	}
	return nil
}

// again repeats a call that the kernel refuses while pages of the device are in
// its cache.
func again(call func() error) error {
	var err error
	for range 64 {
		if err = call(); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// tryOther says whether an error means that another device should be tried.
func tryOther(err error) bool {
	for _, e := range []unix.Errno{unix.EBUSY, unix.ENXIO, unix.ENODEV, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
