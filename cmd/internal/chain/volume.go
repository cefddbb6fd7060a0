package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	// appearTime is how long a volume may take to show up in the mount: the kernel
	// may remember for a moment that there was none.
	appearTime = 5 * time.Second
	// createGrace is how long an interrupted run lets `volume create` come to its end,
	// to know whether the volume is its own.
	createGrace = 3 * time.Second
)

// volume creates the volume if there is none.
func (c *Chain) volume(ctx context.Context, req Request, image string, res *Result) error {
	size, err := c.sys.ImageSize(ctx, image)
	if err == nil {
		if req.Size != 0 && req.Size != size {
			return fmt.Errorf("volume %s has %s, not %s: `kvbfs volume resize` changes it", req.Name, formatSize(size), formatSize(req.Size))
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := c.create(ctx, req, image); err != nil {
		return err
	}
	res.CreatedVolume = true
	id := uint64(0)
	c.onFailureAlone("remove volume "+req.Name, func(ctx context.Context) error { return c.removeVolume(ctx, req, image, id) })
	for start := time.Now(); ctx.Err() == nil; {
		id, err = c.sys.ImageID(ctx, image)
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if time.Since(start) > appearTime {
			return fmt.Errorf("volume %s was created, but %s does not show it (is it mounted with --only?)", req.Name, filepath.Dir(image))
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// create creates the volume, or fails and has made nothing that is known to be ours:
// somebody else may make a volume of the same name at the same time.
func (c *Chain) create(ctx context.Context, req Request, image string) error {
	want := req.Size
	if want == 0 {
		want = DefaultSize
	}
	c.Progress("creating volume %s of %s", req.Name, formatSize(want))
	args := []string{"volume", "create", "--size=" + strconv.FormatInt(want, 10), req.Name}
	later, cancel := outlive(ctx, createGrace)
	defer cancel()
	err := c.sys.Kvbfs(later, req.Store, append(args, req.dangerous()...)...)
	if err != nil && ctx.Err() != nil {
		c.onFailureAlone("look for volume "+req.Name, func(ctx context.Context) error {
			if _, err := c.sys.ImageSize(ctx, image); err == nil {
				c.tellLeftVolume(req.Name)
			}
			return nil
		})
	}
	return err
}

// removeVolume removes the volume that this run created, if it still is that one.
func (c *Chain) removeVolume(ctx context.Context, req Request, image string, id uint64) error {
	switch now, err := c.sys.ImageID(ctx, image); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case id != 0 && now != id:
		c.tellLeftVolume(req.Name)
		return nil
	}
	return c.sys.Kvbfs(ctx, req.Store, "volume", "rm", "--yes", req.Name)
}

// sameVolume forgets what an earlier run left on another volume of the same name: what
// is on this one was put there by somebody else.
func (c *Chain) sameVolume(ctx context.Context, image string, rec *record) error {
	id, err := c.sys.ImageID(ctx, image)
	if err != nil {
		return err
	}
	if rec.Inode != id {
		rec.Mkfs, rec.Inode = false, id
	}
	return nil
}

func (c *Chain) tellLeftVolume(name string) {
	c.Notice("volume %s is left there, as somebody else may have made it: `kvbfs volume rm %s` removes it", name, name)
}

// outlive returns a context that ends a grace later than ctx.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		_ = pause(later, grace)
		cancel()
	})
	return later, func() { stop(); cancel() }
}
