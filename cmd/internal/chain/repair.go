package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/losetup"
)

// letGo is how long a file system that was taken off a dead device may take to
// let the device go: it tries to write its last words first.
const letGo = 10 * time.Second

// repair puts aside what is dead, from the top: file systems, devices, mounts. It
// says what it found.
func (c *Chain) repair(ctx context.Context, f *found) (said []string, err error) {
	say := func(format string, args ...any) {
		said = append(said, fmt.Sprintf(format, args...))
		c.Notice(format, args...)
	}
	if f.lost != "" {
		say("found %s without its volume: taken off", f.lost)
		if err := c.sys.Unmount(ctx, f.lost, true); err != nil {
			return said, err
		}
		if err := c.awaitEnd(ctx, f.record.Fuse2fs); err != nil {
			return said, err
		}
	}
	if f.leaving {
		// It writes to the image until it ends.
		c.Progress("waiting for fuse2fs (process %d) to end", f.record.Fuse2fs)
		if err := c.awaitEnd(ctx, f.record.Fuse2fs); err != nil {
			return said, err
		}
	}
	for _, d := range f.broken {
		if err := c.putAside(ctx, f, d, say); err != nil {
			return said, err
		}
	}
	for _, dir := range f.dead {
		say("found the mount of a daemon that is gone on %s: taken off", dir)
		if err := c.unmountAll(ctx, dir); err != nil {
			return said, err
		}
	}
	return said, ctx.Err()
}

// putAside takes a device that does not work off everything that is on it.
func (c *Chain) putAside(ctx context.Context, f *found, d losetup.Device, say func(string, ...any)) error {
	wait := letGo
	var users []string
	for _, at := range f.points(d.Path) {
		u := c.sys.TreeUsers(at)
		users = append(users, u...)
		say("found a dead file system on %s (%s): taken off%s", at, d.Path, usedBy(u))
		if err := c.sys.Unmount(ctx, at, true); err != nil {
			return err
		}
	}
	if len(users) > 0 {
		wait = time.Second
	}
	err := c.detach(ctx, d, wait)
	if errors.Is(err, losetup.ErrBusy) {
		// The users hold on to a file system that nobody else can see any more. A new
		// device can be made all the same.
		f.held = append(f.held, users...)
		say("found %s on a mount that is gone: it is detached when its last user ends (%v)", d.Path, err)
		return c.sys.DetachLater(d)
	}
	if err == nil {
		say("found %s on a mount that is gone: detached", d.Path)
	}
	return err
}

func usedBy(users []string) string {
	if len(users) == 0 {
		return ""
	}
	return "; it was used by " + strings.Join(users, ", ")
}

// unmountAll takes off dead mounts, which may lie on one another.
func (c *Chain) unmountAll(ctx context.Context, dir string) error {
	for range 16 {
		if _, ok := losetup.MountAt(c.sys.Table(), dir); !ok {
			return nil
		}
		if err := c.sys.Probe(ctx, dir); !fusefs.Unserved(err) {
			return nil // what is below is alive
		}
		if err := c.sys.Unmount(ctx, dir, true); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s stays mounted", dir)
}

// detach detaches a device, which a file system that was just unmounted may hold
// a little longer.
func (c *Chain) detach(ctx context.Context, d losetup.Device, wait time.Duration) error {
	for start := time.Now(); ; {
		err := c.sys.Detach(ctx, d)
		if errors.Is(err, losetup.ErrNotAttached) {
			return nil
		}
		// Who has it open or mounted will not go by waiting; a file system without
		// a mount point will.
		if !errors.Is(err, losetup.ErrBusy) || time.Since(start) >= wait || len(c.sys.DeviceUsers(d.Path)) > 0 {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// awaitEnd waits until a fuse2fs that was unmounted has written everything.
func (c *Chain) awaitEnd(ctx context.Context, pid int) error {
	for start := time.Now(); c.sys.Alive(pid, "fuse2fs"); {
		if time.Since(start) > time.Minute {
			return fmt.Errorf("fuse2fs (process %d) does not end, though its mount is gone: end it and run this again", pid)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// onDevice returns the device of a path if it is still that of a file: its number may
// have been given to another one since.
func onDevice(list []losetup.Device, path, backing string) (d losetup.Device, ok bool) {
	i := slices.IndexFunc(list, func(d losetup.Device) bool { return d.Path == path && d.Backing == backing })
	if i < 0 {
		return d, false
	}
	return list[i], true
}
