package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/losetup"
)

func formatSize(n int64) string { return stack.FormatSize(n) }

// makeDirs makes a directory and its parents, and returns those it made, the
// outermost first.
func makeDirs(dir string) (made []string, err error) {
	var missing []string
	for d := dir; ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err == nil {
			if !fi.IsDir() {
				return nil, fmt.Errorf("%s is not a directory", d)
			}
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		if err := os.Mkdir(d, 0o755); err != nil {
			return made, err
		}
		made = append(made, d)
	}
	return made, nil
}

// removeDirs removes directories that makeDirs made, as far as they are empty.
func removeDirs(made []string) {
	for _, d := range slices.Backward(made) {
		_ = os.Remove(d)
	}
}

// unmountIf unmounts a mount point if source, a device of the store on dir, is what is
// mounted there. It fails if source stays mounted somewhere.
func (c *Chain) unmountIf(ctx context.Context, at, source, dir string) error {
	if m, ok := losetup.MountAt(c.sys.Table(), at); ok && m.Source == source {
		if err := c.slowly(ctx, "unmount of "+at, dir, func() error { return c.sys.Unmount(ctx, at, false) }); err != nil {
			return err
		}
	}
	return c.unmounted(source)
}

// unmounted refuses a device that is mounted, here or in another mount namespace.
func (c *Chain) unmounted(device string) error {
	for _, m := range c.sys.Table() {
		if m.Source == device {
			return fmt.Errorf("%s is still mounted on %s", device, m.Point)
		}
	}
	for _, u := range c.sys.DeviceUsers(device) {
		if strings.HasPrefix(u, "mounted on ") {
			return fmt.Errorf("%s is still %s", device, u)
		}
	}
	return nil
}

// detachIf detaches a device if it still is of that image.
func (c *Chain) detachIf(ctx context.Context, device, image string) error {
	devices, err := c.sys.Devices()
	if err != nil {
		return err
	}
	if d, ok := onDevice(devices, device, image); ok {
		return c.detach(ctx, d, letGo)
	}
	return nil
}

// stopLocked is stop under the store's lock.
func (c *Chain) stopLocked(ctx context.Context, name, store, dir string, res *Result) error {
	unlock, err := c.lockStore(ctx, store)
	if err != nil {
		return err
	}
	defer unlock()
	return c.stop(ctx, name, store, dir, res)
}

// stop ends the mount of a store if Up started it and nothing else uses it; who
// does is put into res.
func (c *Chain) stop(ctx context.Context, name, store, dir string, res *Result) error {
	m, ok := losetup.MountAt(c.sys.Table(), dir)
	if !c.ours(dir) {
		return nil
	}
	if ok && m.FUSE() {
		var users []string
		for _, other := range c.others(name, dir) {
			users = append(users, "volume "+other)
		}
		users = append(users, c.sys.TreeUsers(dir)...)
		if len(users) > 0 {
			res.Left = append(res.Left, dir+", used by "+strings.Join(users, ", "))
			return nil
		}
		var err error
		if fusefs.Unserved(c.sys.Probe(ctx, dir)) {
			err = c.unmountAll(ctx, dir)
		} else {
			c.Progress("unmounting %s", store)
			err = c.slowly(ctx, "unmount of "+dir, dir, func() error { return c.sys.Kvbfs(ctx, "", "umount", dir) })
		}
		if err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
