package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// undoTime bounds the taking back of an interrupted run.
const undoTime = 2 * time.Minute

// Up brings a volume up: all links that are missing are made. When it fails, or
// ctx ends, everything that this run made is taken back, also a volume that it
// created. It may be called again at any time.
func (c *Chain) Up(ctx context.Context, req Request) (res Result, err error) {
	store, err := req.check()
	if err != nil {
		return res, err
	}
	if err := c.tools(req); err != nil {
		return res, err
	}
	unlock, err := c.lockVolume(ctx, req.Name)
	if err != nil {
		return res, err
	}
	defer unlock()
	before, err := c.load(req.Name)
	if err != nil {
		return res, err
	}
	unlockStore, err := c.lockStore(ctx, store)
	if err != nil {
		return res, err
	}
	release := sync.OnceFunc(unlockStore)
	defer release()
	f, err := c.observe(ctx, req.Name, store, before)
	if err != nil {
		return res, err
	}
	complete, err := f.judge(req, store)
	if err != nil {
		return res, err
	}
	res = Result{Name: req.Name, Store: store, Dir: f.dir, At: req.At}
	if res.Ignored = f.ignored(req.MountFlags); len(res.Ignored) > 0 {
		c.Notice("%s has no effect: %s is mounted on %s already, without. To change that: %s",
			strings.Join(res.Ignored, " "), store, f.dir, c.howToRemount(req.Name, store, f.dir, res.Ignored))
	}
	if complete {
		return c.complete(res, f), nil
	}
	if res.Repaired, err = c.repair(ctx, f); err != nil {
		return res, err
	}
	rec := &record{Name: req.Name, Store: store, At: req.At, Rootless: req.Rootless}
	if before != nil && before.Store == store {
		rec.Made, rec.Mkfs, rec.Inode = before.Made, before.Mkfs, before.Inode
		if before.At != req.At {
			rec.Made = nil
		}
	}
	if err = c.make(ctx, req, f, rec, &res, release); err == nil {
		err = ctx.Err()
	}
	if err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		release()
		clean := c.takeBack(undoCtx, rec, f)
		if errors.Is(err, context.Canceled) {
			err = interrupted(clean)
		}
		return res, err
	}
	c.undos = nil
	return res, nil
}

// howToRemount says how the mount of a store comes to have other flags.
func (c *Chain) howToRemount(name, store, dir string, flags []string) string {
	if dir != c.privateDir(store) {
		return fmt.Sprintf("`kvbfs umount %s`, then `kvbfs mount %s` with %s", dir, dir, strings.Join(flags, " "))
	}
	how := "`kvbfs down " + name + "`"
	for _, other := range c.others(name, dir) {
		how += ", `kvbfs down " + other + "` (it is on the same mount)"
	}
	return how + ", then up again"
}

// complete fills in what is up already.
func (c *Chain) complete(res Result, f *found) Result {
	res.Already = true
	if f.device != nil {
		res.Device = f.device.Path
	}
	for _, m := range f.table {
		if m.Point == res.At {
			res.FS = m.Type
		}
	}
	if f.rootlessUp() {
		res.FS = f.record.FS
	}
	return res
}

// takeBack undoes this run and leaves the record that fits what remains.
func (c *Chain) takeBack(ctx context.Context, rec *record, f *found) (clean bool) {
	clean = c.rollback(ctx, rec.Name)
	var err error
	switch before := f.record; {
	case !clean:
		return false // the record of this run says what may be left
	case before != nil && f.dir != "":
		// This run may have emptied the volume again, or seen that it is another one.
		before.Mkfs = before.Mkfs && rec.Mkfs && rec.Inode == before.Inode
		err = c.save(before) // at least the mount of the store goes on
	default:
		if before != nil {
			removeDirs(before.Made)
		}
		err = c.forget(rec.Name)
	}
	if err != nil {
		c.Notice("%v", err)
	}
	return true
}

// interrupted is a context.Canceled for people; its value says whether all was
// taken back.
type interrupted bool

func (i interrupted) Error() string {
	if i {
		return "interrupted; what this run made is taken back"
	}
	return "interrupted; not all that this run made could be taken back: run `kvbfs down`"
}

func (interrupted) Is(target error) bool { return target == context.Canceled }

// tools looks for the programs that the request needs, before anything is made.
func (c *Chain) tools(req Request) error {
	fs, _ := fsNamed(DefaultFS)
	if req.FS != "" {
		fs, _ = fsNamed(req.FS)
	}
	need := [][2]string{{fs.tool, fs.pack}}
	if req.Rootless {
		need = append(need, [2]string{"fuse2fs", "fuse2fs"})
	}
	for _, n := range need {
		if c.sys.LookPath(n[0]) != nil {
			return fmt.Errorf("%s is missing: `apt install %s`", n[0], n[1])
		}
	}
	return nil
}

// make makes the links that are missing, from the bottom. storeFound is called when
// the store's lock is not needed any more.
func (c *Chain) make(ctx context.Context, req Request, f *found, rec *record, res *Result, storeFound func()) error {
	err := c.mountStore(ctx, req, f, rec, res)
	storeFound()
	if err != nil {
		return err
	}
	image := filepath.Join(rec.Dir, req.Name)
	if err := c.volume(ctx, req, image, res); err != nil {
		return err
	}
	if err := c.sameVolume(ctx, image, rec); err != nil {
		return err
	}
	if req.Rootless {
		return c.makeRootless(ctx, req, image, rec, res)
	}
	if err := c.attach(ctx, image, rec, res); err != nil {
		return err
	}
	fs, err := c.filesystem(ctx, req, rec.Device, rec, res)
	if err != nil {
		return err
	}
	if err := c.mountPoint(rec); err != nil {
		return err
	}
	c.Progress("mounting %s on %s", rec.Device, rec.At)
	c.onFailure("unmount "+rec.At, func(ctx context.Context) error { return c.unmountIf(ctx, rec.At, rec.Device, rec.Dir) })
	err = c.sys.Mount(ctx, rec.Device, rec.At, fs)
	if err != nil && len(f.held) > 0 {
		// XFS and btrfs refuse a second file system with the same UUID.
		return fmt.Errorf("%w; %s still holds the dead file system: end it and run up again", err, strings.Join(f.held, ", "))
	}
	return err
}

// mountStore starts a daemon for the store if there is none. The store's lock is
// held since we looked.
func (c *Chain) mountStore(ctx context.Context, req Request, f *found, rec *record, res *Result) error {
	rec.Dir = f.dir
	if rec.Dir != "" {
		res.Dir = rec.Dir
		return c.save(rec)
	}
	rec.Dir, res.StartedMount = c.privateDir(rec.Store), true
	res.Dir = rec.Dir
	if err := os.Mkdir(rec.Dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := c.save(rec); err != nil {
		return err
	}
	c.Progress("mounting %s", rec.Store)
	c.onFailure("unmount "+rec.Dir, func(ctx context.Context) error {
		return c.stopLocked(ctx, rec.Name, rec.Store, rec.Dir, new(Result))
	})
	return c.slowly(ctx, "mount of "+rec.Store, rec.Dir, func() error {
		return c.sys.Kvbfs(ctx, req.Store, slices.Concat([]string{"mount", rec.Dir}, texts(req.MountFlags), req.dangerous())...)
	})
}

// attach makes the device.
func (c *Chain) attach(ctx context.Context, image string, rec *record, res *Result) error {
	c.Progress("attaching %s", image)
	d, existing, err := c.sys.Attach(ctx, image)
	if err != nil {
		return err
	}
	if !existing {
		c.onFailure("detach "+d.Path, func(ctx context.Context) error { return c.detachIf(ctx, d.Path, image) })
	}
	rec.Device, res.Device = d.Path, d.Path
	return c.save(rec)
}

// filesystem makes the file system if the volume is empty, and says which one it
// is. on is the device or the image.
func (c *Chain) filesystem(ctx context.Context, req Request, on string, rec *record, res *Result) (filesystem, error) {
	head, err := c.sys.Read(ctx, on, probeSize)
	if err != nil {
		return filesystem{}, err
	}
	content := identify(head)
	if rec.Mkfs && (content == half || content == unknown) {
		// A run that was killed in mkfs left it, on a volume that was empty.
		c.Notice("found a file system half made on %s: it is made anew", req.Name)
		if err := c.wipe(ctx, on, rec); err != nil {
			return filesystem{}, err
		}
		content = empty
	}
	rec.Mkfs = false
	name, missing, err := choose(req.Name, content, req.FS)
	if err != nil {
		return filesystem{}, err
	}
	fs, _ := fsNamed(name)
	rec.FS, res.FS = name, name
	if req.Rootless && name != "ext4" {
		return fs, fmt.Errorf("volume %s holds %s, which needs the kernel: --rootless knows ext4 only", req.Name, name)
	}
	image, capacity := filepath.Join(rec.Dir, req.Name), int64(0)
	if journals(name) {
		capacity = c.capacity(ctx, image)
	}
	if !missing {
		c.makeRoom(ctx, name, on, image, capacity)
		return fs, c.save(rec)
	}
	rec.Mkfs = true
	if err := c.save(rec); err != nil {
		return fs, err
	}
	c.Progress("making %s on %s", name, on)
	if !res.CreatedVolume {
		c.onFailureAlone("empty volume "+req.Name+" again", func(ctx context.Context) error {
			if err := c.unmounted(on); err != nil {
				return err
			}
			return c.wipe(ctx, on, rec)
		})
	}
	size, err := c.sys.ImageSize(ctx, image)
	if err != nil {
		return fs, err
	}
	journal := journalOptions(name, size, capacity, req.MkfsOptions)
	if err := c.mkfs(ctx, fs, fs.mkfs(on, res.CreatedVolume, journal, req.MkfsOptions)); err != nil {
		return fs, err
	}
	rec.Mkfs, res.MadeFS = false, true
	c.makeRoom(ctx, name, on, image, capacity)
	return fs, c.save(rec)
}

// wipe makes a volume empty again in whose mkfs was interrupted. It held nothing
// before.
func (c *Chain) wipe(ctx context.Context, on string, rec *record) error {
	if err := c.sys.Wipe(ctx, on, probeSize); err != nil {
		return err
	}
	rec.Mkfs = false
	return c.save(rec)
}

// mountPoint makes the directory for the file system.
func (c *Chain) mountPoint(rec *record) error {
	made, err := makeDirs(rec.At)
	rec.Made = append(rec.Made, made...)
	if len(made) > 0 {
		c.onFailure("remove "+rec.At, func(context.Context) error { removeDirs(made); return nil })
	}
	if err != nil {
		return err
	}
	return c.save(rec)
}
