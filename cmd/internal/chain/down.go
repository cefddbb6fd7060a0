package chain

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/losetup"
)

// Down takes a volume down: file system, device, and the mount of the store if Up
// started it and nothing else uses it. at, if given, must be where it is. While
// something uses the file system, Down says who and changes nothing. If the
// volume is not up, Result.Already is true. It may be called again at any time.
func (c *Chain) Down(ctx context.Context, name, at string) (res Result, err error) {
	defer func() {
		if errors.Is(err, context.Canceled) {
			err = downInterrupted(name)
		}
	}()
	if err := checkName(name); err != nil {
		return res, err
	}
	if at != "" {
		if at, err = resolve(at); err != nil {
			return res, err
		}
	}
	unlock, err := c.lockVolume(ctx, name)
	if err != nil {
		return res, err
	}
	defer unlock()
	rec, err := c.load(name)
	if err != nil {
		return res, err
	}
	if rec == nil {
		if rec, err = c.byHand(ctx, name); err != nil {
			return res, err
		}
	}
	if rec == nil {
		return Result{Name: name, At: at, Already: true}, nil
	}
	if at != "" && rec.At != "" && at != rec.At {
		return res, usagef("%s is on %s, not on %s", name, rec.At, at)
	}
	res = Result{Name: name, Store: rec.Store, Dir: rec.Dir, Device: rec.Device, At: rec.At, FS: rec.FS}
	unlockStore, err := c.lockStore(ctx, rec.Store)
	if err != nil {
		return res, err
	}
	f, err := c.observe(ctx, name, rec.Store, rec)
	if err == nil {
		err = f.notForeign()
	}
	if err == nil {
		res.Repaired, err = c.repair(ctx, f)
	}
	unlockStore()
	if err != nil {
		return res, err
	}
	if err := c.takeDown(ctx, f, rec, &res); err != nil {
		return res, err
	}
	removeDirs(rec.Made)
	return res, nil
}

// byHand makes a record of a volume that was attached without Up, nil if it is
// not attached at all.
func (c *Chain) byHand(ctx context.Context, name string) (*record, error) {
	devices, err := c.sys.Devices()
	if err != nil {
		return nil, err
	}
	mounts, err := c.sys.Daemons()
	if err != nil {
		return nil, err
	}
	d, err := deviceOf(ctx, name, devices, mounts, nil, c.sys.Answers)
	if errors.Is(err, losetup.ErrNotAttached) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec := &record{Name: name, Device: d.Path, Dir: filepath.Dir(d.Backing)}
	for _, m := range mounts {
		if m.Dir == rec.Dir {
			rec.Store = m.Store
		}
	}
	for _, m := range c.sys.Table() {
		if m.Source == d.Path {
			rec.At, rec.FS = m.Point, m.Type
		}
	}
	return rec, nil
}

// takeDown takes away the links that live, from the top.
func (c *Chain) takeDown(ctx context.Context, f *found, rec *record, res *Result) error {
	c.tellSilent(ctx, rec)
	if f.device != nil {
		res.Device = f.device.Path
		if err := c.free(f.device.Path, rec.At, f.points(f.device.Path)); err != nil {
			return err
		}
		if slices.Contains(f.points(f.device.Path), rec.At) {
			if err := c.unmount(ctx, rec.At, rec.Dir); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		c.Progress("detaching %s", f.device.Path)
		err := c.slowly(ctx, "detach of "+f.device.Path, rec.Dir, func() error { return c.detach(ctx, *f.device, letGo) })
		if err != nil {
			return err
		}
	}
	if f.rootlessUp() {
		if err := c.idle(rec.At); err != nil {
			return err
		}
		if err := c.unmount(ctx, rec.At, rec.Dir); err != nil {
			return err
		}
	}
	if rec.Rootless {
		if err := c.slowly(ctx, "end of fuse2fs", rec.Dir, func() error { return c.awaitEnd(ctx, rec.Fuse2fs) }); err != nil {
			return err
		}
	}
	if err := c.stopLocked(ctx, rec.Name, rec.Store, rec.Dir, res); err != nil {
		return err
	}
	return c.forget(rec.Name)
}

// unmount unmounts the file system, which writes what is dirty to the store on dir.
func (c *Chain) unmount(ctx context.Context, at, dir string) error {
	c.Progress("unmounting %s", at)
	err := c.slowly(ctx, "unmount of "+at, dir, func() error { return c.sys.Unmount(ctx, at, false) })
	if errors.Is(err, unix.EBUSY) {
		if err := c.idle(at); err != nil {
			return err
		}
		return fmt.Errorf("%s is in use by something that is not visible from here", at)
	}
	return err
}

// free refuses a device that has users beside its mount on at.
func (c *Chain) free(device, at string, points []string) error {
	var users []string
	for _, p := range points {
		if p != at {
			users = append(users, "also mounted on "+p)
		}
	}
	for _, u := range c.sys.DeviceUsers(device) {
		if !strings.HasPrefix(u, "mounted on ") || strings.Contains(u, "mount namespace") {
			users = append(users, u)
		}
	}
	if len(users) > 0 {
		return fmt.Errorf("%s: %w: %s; nothing was changed", device, losetup.ErrBusy, strings.Join(users, ", "))
	}
	return c.idle(at)
}

// idle refuses a mount point that is in use.
func (c *Chain) idle(at string) error {
	if at == "" {
		return nil
	}
	if _, ok := losetup.MountAt(c.sys.Table(), at); !ok {
		return nil
	}
	if users := c.sys.TreeUsers(at); len(users) > 0 {
		return fmt.Errorf("%s is in use by %s; nothing was changed", at, strings.Join(users, ", "))
	}
	return nil
}
