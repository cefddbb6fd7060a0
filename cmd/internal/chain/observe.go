package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/losetup"
)

// found is the state of a volume's chain on this machine.
type found struct {
	record *record // of an earlier run; nil: none
	table  []losetup.Mount

	dir string // where a living daemon serves the store; "" for nowhere
	// caching is what the daemon on dir was told; nil: not known.
	caching *daemon.Caching
	dead    []string // mount points of the store whose daemon is gone
	device  *losetup.Device
	// broken are devices of the volume that answer with errors: their mount is dead.
	broken []losetup.Device
	// lost is a fuse2fs mount whose volume or process is gone, "" for none; foreign is a
	// mount in its place that somebody else serves.
	lost, foreign string
	// leaving: a fuse2fs lives whose mount is not to be seen.
	leaving bool
	// held are those who keep a dead file system alive that repair took off.
	held []string
}

// observe looks at everything that an earlier run or the user may have made for a
// volume. store may be empty if there is a record.
func (c *Chain) observe(ctx context.Context, name, store string, rec *record) (*found, error) {
	f := &found{record: rec, table: c.sys.Table()}
	if store == "" && rec != nil {
		store = rec.Store
	}
	var dirs []string // of the store, the likeliest first
	if rec != nil && rec.Dir != "" && rec.Store == store {
		dirs = append(dirs, rec.Dir)
	}
	if private := c.privateDir(store); !slices.Contains(dirs, private) {
		dirs = append(dirs, private)
	}
	live, err := c.living(ctx, store, f.table)
	if err != nil {
		return nil, err
	}
	if err := c.findDead(ctx, f, dirs, live); err != nil {
		return nil, err
	}
	if err := c.findDevices(ctx, f, name, dirs, live); err != nil {
		return nil, err
	}
	if f.dir == "" {
		f.dir = prefer(dirs, live)
	}
	if f.caching, err = c.cachingOn(f.dir); err != nil {
		return nil, err
	}
	if err := c.findFuse2fs(ctx, f); err != nil {
		return nil, err
	}
	return f, nil
}

// cachingOn is what the daemon on a directory was told of caches; nil if it does not
// say.
func (c *Chain) cachingOn(dir string) (*daemon.Caching, error) {
	daemons, err := c.sys.Daemons()
	if err != nil {
		return nil, err
	}
	for _, d := range daemons {
		if d.Dir == dir {
			return d.Caching, nil
		}
	}
	return nil, nil
}

// ignored are the flags that the mount which is there does not have.
func (f *found) ignored(flags []MountFlag) (out []string) {
	for _, flag := range flags {
		if f.dir != "" && (f.caching == nil || !flag.In(*f.caching)) {
			out = append(out, flag.Text)
		}
	}
	return out
}

// living are the directories in which daemons that live serve the store.
func (c *Chain) living(ctx context.Context, store string, table []losetup.Mount) ([]string, error) {
	daemons, err := c.sys.Daemons()
	if err != nil {
		return nil, err
	}
	var live []string
	for _, d := range daemons {
		m, ok := losetup.MountAt(table, d.Dir)
		// One whose mount is not to be seen serves another mount namespace.
		if d.Store != store || !ok || !m.FUSE() {
			continue
		}
		switch err := c.sys.Probe(ctx, d.Dir); {
		case err == nil:
			live = append(live, d.Dir)
		case !fusefs.Unserved(err):
			return nil, err
		}
	}
	return live, nil
}

// findDead looks for mounts in our directories that nobody serves.
func (c *Chain) findDead(ctx context.Context, f *found, dirs, live []string) error {
	for _, dir := range dirs {
		m, ok := losetup.MountAt(f.table, dir)
		if !ok || slices.Contains(live, dir) {
			continue
		}
		if err := c.sys.Probe(ctx, dir); err == nil || !fusefs.Unserved(err) || !m.FUSE() {
			return fmt.Errorf("%s is mounted (%s), but not by a kvbfs that is known here: unmount it first", dir, m.Source)
		}
		f.dead = append(f.dead, dir)
	}
	return nil
}

// findDevices sorts the devices of the volume into the one that works and those
// that do not. It settles f.dir if there is one that works.
func (c *Chain) findDevices(ctx context.Context, f *found, name string, dirs, live []string) error {
	devices, err := c.sys.Devices()
	if err != nil {
		return err
	}
	for _, d := range devices {
		dir := filepath.Dir(d.Backing)
		if filepath.Base(d.Backing) != name {
			continue
		}
		if d.Autoclear && !slices.Contains(live, dir) {
			continue // dead and on its way: DetachLater
		}
		switch {
		case slices.Contains(live, dir):
			working, err := c.works(ctx, d)
			if err != nil {
				return err
			}
			if working {
				f.device, f.dir = &d, dir
			} else {
				f.broken = append(f.broken, d)
			}
		case unseen(d) && f.record != nil && f.record.Device == d.Path:
			// A mount that is not to be seen may live all the same.
			switch err := c.sys.Answers(ctx, d.Path); {
			case errors.Is(err, syscall.EIO):
				f.broken = append(f.broken, d)
			case err != nil:
				return err
			case f.device == nil:
				f.device = &d
			}
		case slices.Contains(dirs, dir):
			f.broken = append(f.broken, d)
		}
	}
	return nil
}

// probeBlock is what is read of a device to see whether it works, in bytes.
const probeBlock = 4096

// works says whether a device in a living mount is one of that mount, and not of
// an earlier one on the same directory. A device that cannot be read where its
// image can has lost its mount; if both cannot, the store is at fault.
func (c *Chain) works(ctx context.Context, d losetup.Device) (bool, error) {
	err := c.sys.Answers(ctx, d.Path)
	if errors.Is(err, syscall.EIO) {
		_, imageErr := c.sys.Read(ctx, d.Backing, probeBlock)
		return imageErr != nil, ctx.Err()
	}
	return err == nil, err
}

// prefer chooses among living mounts: those of dirs in their order, else any.
func prefer(dirs, live []string) string {
	for _, dir := range dirs {
		if slices.Contains(live, dir) {
			return dir
		}
	}
	if len(live) > 0 {
		return live[0]
	}
	return ""
}

// points are where a device is mounted.
func (f *found) points(device string) []string {
	var list []string
	for _, m := range f.table {
		if m.Source == device {
			list = append(list, m.Point)
		}
	}
	return list
}

// anything says whether a link of the chain is there, dead or alive.
func (f *found) anything() bool {
	return f.device != nil || len(f.broken) > 0 || len(f.dead) > 0 || f.lost != "" || f.leaving || f.rootlessUp()
}

// recordUp says whether what an earlier run made is mounted where it put it: a
// record of another store would be lost by going on.
func (f *found) recordUp() bool {
	m, ok := losetup.MountAt(f.table, f.record.At)
	return ok && f.record.Device != "" && m.Source == f.record.Device
}

// vacant refuses a mount point with something in it: the mount would hide that.
// One that is missing, or no directory, is makeDirs' matter.
func vacant(at string) error {
	if inside, err := os.ReadDir(at); err == nil && len(inside) > 0 {
		return fmt.Errorf("%s is not empty, the mount would hide what is in it: choose another directory", at)
	}
	return nil
}

// rootlessUp says whether fuse2fs serves the volume of the record.
func (f *found) rootlessUp() bool {
	if f.record == nil || !f.record.Rootless || f.lost != "" {
		return false
	}
	m, ok := losetup.MountAt(f.table, f.record.At)
	return ok && m.FUSE()
}

// judge says whether all is up already, or refuses a request that would touch
// what is not ours. It changes nothing.
func (f *found) judge(req Request, store string) (complete bool, err error) {
	if r := f.record; r != nil && r.Store != store && (f.anything() || f.recordUp()) {
		return false, fmt.Errorf("%s is up from another store (%s): `kvbfs down %s` first", req.Name, r.Store, req.Name)
	}
	if err := f.notForeign(); err != nil {
		return false, err
	}
	top, taken := losetup.MountAt(f.table, req.At)
	if f.rootlessUp() {
		switch {
		case !req.Rootless:
			return false, fmt.Errorf("%s is up without root, on %s: `kvbfs down %s` first", req.Name, f.record.At, req.Name)
		case f.record.At != req.At:
			return false, fmt.Errorf("%s is up already, on %s: `kvbfs down %s` first", req.Name, f.record.At, req.Name)
		}
		return true, nil
	}
	if f.device != nil {
		points := f.points(f.device.Path)
		switch {
		case req.Rootless:
			return false, fmt.Errorf("%s is attached to %s: `kvbfs down %s` first", req.Name, f.device.Path, req.Name)
		case taken && top.Source == f.device.Path:
			if req.Size != 0 && req.Size != f.device.Size {
				return false, fmt.Errorf("%s is up with %s, not %s: `kvbfs volume resize` changes it", req.Name, formatSize(f.device.Size), formatSize(req.Size))
			}
			if req.FS != "" && top.Type != req.FS {
				return false, fmt.Errorf("%s is up with %s, not %s", req.Name, top.Type, req.FS)
			}
			return true, nil
		case len(points) > 0:
			return false, fmt.Errorf("%s is up already, on %s: `kvbfs down %s` first", req.Name, points[0], req.Name)
		case unseen(*f.device):
			return false, fmt.Errorf("%s is attached to %s, and its mount is not to be seen any more: `kvbfs down %s` first", req.Name, f.device.Path, req.Name)
		}
	}
	if f.lost == req.At {
		return false, nil
	}
	if !taken {
		return false, vacant(req.At)
	}
	for _, d := range f.broken {
		if top.Source == d.Path {
			return false, nil // repair takes it away
		}
	}
	return false, fmt.Errorf("%s is a mount point already (%s of type %s): choose another directory", req.At, top.Source, top.Type)
}
