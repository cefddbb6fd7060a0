package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// way is how a file system gets onto a volume.
type way interface {
	// name is for the head line.
	name() string
	// files is how many files can be copied in a few seconds.
	files() int
	// fill makes ext4 on the tree volume, puts the tree there and lets go of it.
	fill(ctx context.Context, c *column) error
	// compare reads everything back.
	compare(ctx context.Context, c *column) error
	// disk runs f with the path where the volume is best read and written
	// directly: the device where there is one, else the image.
	disk(ctx context.Context, c *column, volume string, f func(path string) error) error
}

// chooseWay tries the ways from the best one down. A loop device is tried by
// attaching one: its control file says little about whether it will work.
func (d *demo) chooseWay(ctx context.Context) (way, error) {
	l := &loopWay{d}
	c := d.columns[0]
	var why error
	if scratch.RootHere() {
		d.out.progress("trying a loop device")
		if why = l.disk(ctx, c, benchVolume, func(string) error { return nil }); why == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if _, err := exec.LookPath("fuse2fs"); err == nil {
		f := &fuse2fsWay{d: d}
		d.out.progress("trying fuse2fs")
		if why = f.try(ctx, c); why == nil {
			return f, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if _, err := exec.LookPath("debugfs"); err == nil {
		return &debugfsWay{d}, nil
	}
	if why == nil {
		why = errors.New("neither root nor fuse2fs nor debugfs")
	}
	return nil, fmt.Errorf("no way to put a file system onto a volume: %w", why)
}

func (d *demo) mkfs(ctx context.Context, target string, more ...string) error {
	args := append([]string{"mke2fs", "-q", "-F", "-t", "ext4", "-m", "0"}, more...)
	_, err := d.s.Run(ctx, append(args, target)...)
	return err
}

// point returns a fresh mount point.
func (d *demo) point(c *column) (string, error) {
	dir := d.s.Path(c.title + "-ext4")
	return dir, os.MkdirAll(dir, 0o700)
}

// loopWay is the real thing: a loop device with direct I/O and the kernel's ext4.
type loopWay struct{ d *demo }

func (*loopWay) name() string { return "ext4 on a loop device" }
func (*loopWay) files() int   { return 3000 }

func (w *loopWay) disk(ctx context.Context, c *column, volume string, f func(path string) error) error {
	out, err := w.d.s.Kvbfs(ctx, "attach", volume, "--dir", c.dir, "--json")
	if err != nil {
		return err
	}
	var dev struct {
		Device string `json:"device"`
	}
	if err := json.Unmarshal([]byte(out), &dev); err != nil {
		return fmt.Errorf("kvbfs attach printed %q: %w", out, err)
	}
	err = f(dev.Device)
	if err != nil && ctx.Err() != nil {
		return ctx.Err() // the sweep detaches
	}
	if _, derr := w.d.s.Kvbfs(ctx, "detach", dev.Device); err == nil {
		err = derr
	}
	return err
}

func (w *loopWay) fill(ctx context.Context, c *column) error {
	return w.disk(ctx, c, treeVolume, func(dev string) error {
		if err := w.d.mkfs(ctx, dev); err != nil {
			return err
		}
		return w.mounted(ctx, c, dev, func(dir string) error { return w.d.tree.copyTo(ctx, dir) })
	})
}

func (w *loopWay) compare(ctx context.Context, c *column) error {
	return w.disk(ctx, c, treeVolume, func(dev string) error {
		return w.mounted(ctx, c, dev, func(dir string) error { return w.d.tree.check(ctx, dir) })
	})
}

func (w *loopWay) mounted(ctx context.Context, c *column, dev string, f func(dir string) error) error {
	dir, err := w.d.point(c)
	if err != nil {
		return err
	}
	if _, err := w.d.s.Run(ctx, "mount", "-t", "ext4", dev, dir); err != nil {
		return err
	}
	err = f(dir)
	if uerr := w.d.s.Unmount(ctx, dir); err == nil && uerr != nil {
		err = fmt.Errorf("umount %s: %w", dir, uerr)
	}
	return err
}

// image is the way to a volume without a loop device.
type image struct{}

func (image) disk(_ context.Context, c *column, volume string, f func(path string) error) error {
	return f(filepath.Join(c.dir, volume))
}

// fuse2fsWay mounts ext4 in user space.
type fuse2fsWay struct {
	image
	d *demo
}

func (*fuse2fsWay) name() string { return "ext4 through fuse2fs, no loop device here" }

// fuse2fs writes its metadata through at each file: some milliseconds.
func (*fuse2fsWay) files() int { return 400 }

// try mounts an empty file system once.
func (w *fuse2fsWay) try(ctx context.Context, c *column) error {
	if err := w.d.mkfs(ctx, filepath.Join(c.dir, treeVolume)); err != nil {
		return err
	}
	return w.mounted(ctx, c, func(string) error { return nil })
}

func (w *fuse2fsWay) fill(ctx context.Context, c *column) error {
	if err := w.d.mkfs(ctx, filepath.Join(c.dir, treeVolume)); err != nil {
		return err
	}
	return w.mounted(ctx, c, func(dir string) error { return w.d.tree.copyTo(ctx, dir) })
}

func (w *fuse2fsWay) compare(ctx context.Context, c *column) error {
	return w.mounted(ctx, c, func(dir string) error { return w.d.tree.check(ctx, dir) })
}

// mounted runs fuse2fs in the foreground: its end says that all is written.
func (w *fuse2fsWay) mounted(ctx context.Context, c *column, f func(dir string) error) error {
	s := w.d.s
	dir, err := w.d.point(c)
	if err != nil {
		return err
	}
	cmd := s.Command(ctx, "fuse2fs", "-f", "-o", "fakeroot", filepath.Join(c.dir, treeVolume), dir)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); !s.Mounted(dir); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			return fmt.Errorf("fuse2fs: %w", errors.Join(err, ctx.Err()))
		default:
		}
		if time.Now().After(end) {
			return errors.New("fuse2fs does not mount") // the sweep ends it
		}
	}
	err = f(dir)
	if uerr := s.Unmount(ctx, dir); err == nil && uerr != nil {
		err = fmt.Errorf("umount %s: %w", dir, uerr)
	}
	select {
	case werr := <-ended:
		if err == nil && werr != nil {
			err = fmt.Errorf("fuse2fs: %w", werr)
		}
	case <-time.After(scratch.CommandLimit):
		err = errors.Join(err, errors.New("fuse2fs does not end after umount"))
	}
	return err
}

// debugfsWay needs nothing but e2fsprogs: the tree goes in with mke2fs and comes
// out with debugfs.
type debugfsWay struct{ d *demo }

func (*debugfsWay) name() string {
	return "ext4 by mke2fs -d and debugfs, no loop device or fuse2fs here"
}

func (*debugfsWay) files() int { return 3000 }

func (w *debugfsWay) disk(ctx context.Context, c *column, volume string, f func(string) error) error {
	return image{}.disk(ctx, c, volume, f)
}

func (w *debugfsWay) fill(ctx context.Context, c *column) error {
	return w.d.mkfs(ctx, filepath.Join(c.dir, treeVolume), "-d", w.d.tree.dir)
}

func (w *debugfsWay) compare(ctx context.Context, c *column) error {
	out := w.d.s.Path(c.title + "-out")
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(out)
	// debugfs takes a script line; the scratch's path has no characters to quote.
	if _, err := w.d.s.Run(ctx, "debugfs", "-R", "rdump / "+out, filepath.Join(c.dir, treeVolume)); err != nil {
		return err
	}
	return w.d.tree.check(ctx, out)
}
