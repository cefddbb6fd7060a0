package chain

import (
	"context"
	"fmt"
	"time"

	"github.com/kvbfs/kvbfs/losetup"
)

// serveTime is how long fuse2fs may take to mount: it replays the journal first.
const serveTime = 2 * time.Minute

// makeRootless makes the file system on the image itself and lets fuse2fs serve
// it: no device and no mount of the kernel's own.
func (c *Chain) makeRootless(ctx context.Context, req Request, image string, rec *record, res *Result) error {
	if _, err := c.filesystem(ctx, req, image, rec, res); err != nil {
		return err
	}
	if err := c.mountPoint(rec); err != nil {
		return err
	}
	c.Progress("mounting %s on %s with fuse2fs", image, rec.At)
	c.onFailure("unmount "+rec.At, func(ctx context.Context) error {
		if m, ok := losetup.MountAt(c.sys.Table(), rec.At); ok && m.FUSE() {
			if err := c.sys.Unmount(ctx, rec.At, false); err != nil {
				return err
			}
		}
		return c.awaitEnd(ctx, rec.Fuse2fs)
	})
	pid, err := c.sys.Spawn("fuse2fs", image, rec.At, "-f", "-o", "fakeroot,nosuid,nodev")
	if err != nil {
		return err
	}
	rec.Fuse2fs = pid
	if err := c.save(rec); err != nil {
		return err
	}
	for start := time.Now(); ; {
		if m, ok := losetup.MountAt(c.sys.Table(), rec.At); ok && m.FUSE() {
			return c.sys.Probe(ctx, rec.At)
		}
		if !c.sys.Alive(pid, "fuse2fs") {
			return fmt.Errorf("fuse2fs could not mount %s on %s: run `fuse2fs -f -o fakeroot %s %s` to see why", image, rec.At, image, rec.At)
		}
		if time.Since(start) > serveTime {
			return fmt.Errorf("fuse2fs does not mount %s", image)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}
