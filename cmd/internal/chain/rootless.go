package chain

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kvbfs/kvbfs/fusefs"
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
	c.onFailure("unmount "+rec.At, func(ctx context.Context) error { return c.endFuse2fs(ctx, rec) })
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

// endFuse2fs unmounts what fuse2fs serves and waits until it has written everything.
// One that has not mounted yet may do so meanwhile.
func (c *Chain) endFuse2fs(ctx context.Context, rec *record) error {
	for start := time.Now(); ; {
		if m, ok := losetup.MountAt(c.sys.Table(), rec.At); ok && m.FUSE() {
			if err := c.sys.Unmount(ctx, rec.At, false); err != nil {
				return err
			}
			return c.awaitEnd(ctx, rec.Fuse2fs)
		}
		if !c.sys.Alive(rec.Fuse2fs, "fuse2fs") {
			return nil
		}
		if time.Since(start) > time.Minute {
			return fmt.Errorf("fuse2fs (process %d) neither mounts %s nor ends", rec.Fuse2fs, rec.At)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// findFuse2fs looks for the fuse2fs of an earlier run, which may have been killed before
// it could note the process. While one lives, no other may be started on its image.
func (c *Chain) findFuse2fs(ctx context.Context, f *found) error {
	r := f.record
	if r == nil || !r.Rootless {
		return nil
	}
	alive := c.sys.Alive(r.Fuse2fs, "fuse2fs")
	if !alive {
		pid, err := c.sys.Find(ctx, "fuse2fs", filepath.Join(r.Dir, r.Name), r.At)
		if err != nil {
			return err
		}
		if alive = pid != 0; alive {
			r.Fuse2fs = pid
		}
	}
	if m, ok := losetup.MountAt(f.table, r.At); !ok || !m.FUSE() {
		f.leaving = alive
		return nil
	}
	switch {
	case fusefs.Unserved(c.sys.Probe(ctx, r.At)), alive && f.dir == "":
		f.lost = r.At
	case !alive:
		f.foreign = r.At
	}
	return nil
}

// notForeign refuses to go on where somebody else mounted something in the place of
// fuse2fs.
func (f *found) notForeign() error {
	if f.foreign == "" {
		return nil
	}
	return fmt.Errorf("%s is mounted, but not by the fuse2fs that up started there: unmount it (`fusermount3 -u %s`), then run this again", f.foreign, f.foreign)
}
