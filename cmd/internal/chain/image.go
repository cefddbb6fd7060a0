package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/losetup"
)

// answerWait bounds how long a mount may take to say whether it has a file.
const answerWait = 10 * time.Second

// IsPath says whether an argument names a file and not a volume.
func IsPath(arg string) bool { return strings.Contains(arg, "/") }

// FindImage returns the file of a volume: in dir if that is given, else in the
// mount of the store, else in the only mount that has such a volume. A name with
// a slash is a file already.
func FindImage(ctx context.Context, name, dir, store string) (string, error) {
	if IsPath(name) {
		if dir != "" || store != "" {
			return "", usagef("%s is a file: --dir and --store are for volume names", name)
		}
		return name, nil
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	if dir != "" {
		return filepath.Join(dir, name), nil
	}
	mounts, err := candidates(store)
	if err != nil {
		return "", err
	}
	var found []string
	for _, m := range mounts {
		image := filepath.Join(m.Dir, name)
		_, err := imageSize(ctx, image)
		switch {
		case err == nil:
			found = append(found, image)
		case ctx.Err() != nil:
			return "", ctx.Err()
		case !errors.Is(err, os.ErrNotExist) && len(mounts) == 1:
			return "", err
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", usagef("several mounts have a volume %s (%s): say which with --dir", name, strings.Join(found, ", "))
	case len(mounts) == 0 && store != "":
		return "", fmt.Errorf("no mount serves %s: run `kvbfs mount DIR --store %s` first", stack.Mask(store), stack.Mask(store))
	case len(mounts) == 0:
		return "", errors.New("nothing is mounted: run `kvbfs mount DIR` first")
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Dir)
	}
	return "", fmt.Errorf("no volume %s in %s: `kvbfs volume create %s --size 10G` makes one", name, strings.Join(dirs, ", "), name)
}

// candidates are the daemons of a store, or all of them.
func candidates(store string) ([]daemon.Mount, error) {
	if store == "" {
		return daemon.Mounts()
	}
	url, err := stack.Canonical(store)
	if err != nil {
		return nil, err
	}
	return daemon.FindStore(url), nil
}

// imageSize asks the mount for the size of an image, in bytes, for as long as a
// mount that works may take.
func imageSize(ctx context.Context, image string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	type answer struct {
		size int64
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		fi, err := os.Lstat(image)
		if err == nil && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", image)
		}
		if err != nil {
			got <- answer{err: err}
			return
		}
		got <- answer{size: fi.Size()}
	}()
	select {
	case a := <-got:
		return a.size, a.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return 0, fmt.Errorf("%s does not answer: see `kvbfs status`", filepath.Dir(image))
		}
		return 0, ctx.Err()
	}
}

// FindDevice returns the device of a volume, a file, or the device that is named.
// It touches no mount, so it works for dead ones too.
func FindDevice(ctx context.Context, arg, dir, store string) (d losetup.Device, err error) {
	if strings.HasPrefix(arg, "/dev/") {
		return losetup.Get(arg)
	}
	if IsPath(arg) {
		devices, err := losetup.Find(arg)
		if err != nil {
			return d, err
		}
		return only(arg, devices)
	}
	if err := checkName(arg); err != nil {
		return d, err
	}
	if dir != "" {
		devices, err := losetup.Find(filepath.Join(dir, arg))
		if err != nil {
			return d, err
		}
		return only(arg, devices)
	}
	devices, err := losetup.List()
	if err != nil {
		return d, err
	}
	mounts, err := candidates(store)
	if err != nil {
		return d, err
	}
	runtime, err := stack.RuntimeDir()
	if err != nil {
		return d, err
	}
	rec, _ := (&Chain{runtime: runtime}).load(arg) // one of another version says nothing
	return deviceOf(ctx, arg, devices, mounts, rec, (&machine{}).Answers)
}

// deviceOf returns the device of the volume in one of the mounts. One whose file is
// not to be seen may be anybody's: it is taken if the volume's record names it, or if
// it does not answer, which is of no use to anybody.
func deviceOf(ctx context.Context, name string, devices []losetup.Device, mounts []daemon.Mount, rec *record,
	answers func(context.Context, string) error) (d losetup.Device, err error) {
	var list []losetup.Device
	var foreign string
	for _, d := range devices {
		if filepath.Base(d.Backing) != name {
			continue
		}
		switch {
		case slices.ContainsFunc(mounts, func(m daemon.Mount) bool { return m.Dir == filepath.Dir(d.Backing) }):
			list = append(list, d)
		case !unseen(d):
		case rec != nil && rec.Device == d.Path:
			list = append(list, d)
		default:
			err := answers(ctx, d.Path)
			if errors.Is(err, syscall.EIO) {
				list = append(list, d)
			} else if foreign = d.Path; err != nil {
				return d, err
			}
		}
	}
	if len(list) == 0 && foreign != "" {
		return d, usagef("%s has a file /%s of a mount that is not to be seen, and works: if that is volume %s, unmount what is on it and run `kvbfs detach %s`",
			foreign, name, name, foreign)
	}
	return only(name, list)
}

// unseen says whether the file of a device is on a mount that was lazily unmounted, or
// is in another mount namespace: it is spelled /NAME then.
func unseen(d losetup.Device) bool {
	if filepath.Dir(d.Backing) != "/" {
		return false
	}
	_, err := os.Lstat(d.Backing)
	return errors.Is(err, os.ErrNotExist)
}

func only(arg string, devices []losetup.Device) (d losetup.Device, err error) {
	switch len(devices) {
	case 0:
		return d, fmt.Errorf("%s: %w", arg, losetup.ErrNotAttached)
	case 1:
		return devices[0], nil
	}
	var paths []string
	for _, d := range devices {
		paths = append(paths, d.Path+" ("+d.Backing+")")
	}
	return d, usagef("%s is on several devices: name one of %s", arg, strings.Join(paths, ", "))
}
