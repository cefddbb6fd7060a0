package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/losetup"
)

// target is something that fio can be pointed at.
type target struct {
	subject, transport, place string

	image string // file that it is, or is on
	path  string // what fio opens; set when it is ready
	pid   int    // of the daemon; 0: not ours
}

// mount is a daemon of ours and what it serves. All of it is a child process:
// whoever serves a mount must not touch it.
type mount struct {
	dir, url string
	pid      int
	volumes  []string
}

// image is the path of a volume's file.
func (m *mount) image(volume string) string { return filepath.Join(m.dir, volume) }

// serve makes volumes on a store and mounts them. flags are more of `kvbfs mount`.
func (b *bench) serve(ctx context.Context, name, url, transport string, sizes map[string]int64, flags ...string) (*mount, error) {
	m := &mount{dir: b.place.Path(name), url: url}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	private := stack.Private(url)
	for _, v := range sorted(sizes) {
		m.volumes = append(m.volumes, v)
		if private {
			continue
		}
		b.made = append(b.made, madeVolume{url, v}) // first: an interrupt may come after it was made
		if _, err := b.place.Kvbfs(ctx, "volume", "create", v, "--size", fmt.Sprint(sizes[v]), "--store", url); err != nil {
			return nil, err
		}
	}
	if err := b.mount(ctx, m, transport, flags...); err != nil {
		return nil, err
	}
	for _, v := range m.volumes {
		// A store inside the daemon is reached through its mount only.
		if private {
			if err := makeSparse(m.image(v), sizes[v]); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// mount starts the daemon of m, and checks that it has the transport that was
// asked for.
func (b *bench) mount(ctx context.Context, m *mount, transport string, flags ...string) error {
	args := append([]string{"--transport", transport}, flags...)
	if !stack.Private(m.url) {
		args = append(args, "--only", strings.Join(m.volumes, ","))
	}
	if err := b.place.Mount(ctx, m.dir, m.url, args...); err != nil {
		return err
	}
	d, ok := daemon.FindDir(m.dir)
	if !ok {
		return fmt.Errorf("no daemon is registered for %s", m.dir)
	}
	m.pid = d.PID
	if transport == uring && !hasRing(m.pid) {
		return fmt.Errorf("the mount on %s was asked to use io_uring and does not: %w", m.dir, errNoRing)
	}
	return nil
}

var errNoRing = errors.New("the kernel or the process's limits do not allow it")

// hasRing says whether a process has an io_uring open.
func hasRing(pid int) bool {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.Contains(to, "io_uring") {
			return true
		}
	}
	return false
}

func makeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// fill writes all of a file or device with random data: the read of a block that
// was never written is answered without the store.
func (b *bench) fill(ctx context.Context, what, path string, size int64) error {
	b.show.step("filling %s (%d MiB)", what, size>>20)
	_, err := runFio(ctx, b.place, fillTime, fioArgs("--name=fill-"+strings.ReplaceAll(what, " ", "-"), "--filename="+path, "--rw=write", "--bs=1m", "--iodepth=4",
		fmt.Sprintf("--size=%d", size), "--refill_buffers"))
	return err
}

// fillTime is far more than any fill takes.
const fillTime = 15 * time.Minute

// attach attaches an image, with the settings that `kvbfs attach` makes, for all
// subjects alike.
func (b *bench) attach(ctx context.Context, image string) (string, error) {
	d, existing, err := losetup.Attach(ctx, image, losetup.Options{Warn: func(msg string) { b.show.note("%s", msg) }})
	if err != nil {
		return "", fmt.Errorf("attaching %s: %w", image, err)
	}
	if !existing && !strings.HasPrefix(image, b.place.Dir+"/") {
		b.loops = append(b.loops, d) // the sweep does not know it
	}
	return d.Path, nil
}

// detachPeers detaches what the sweep does not know.
func (b *bench) detachPeers(ctx context.Context) error {
	var all error
	for _, device := range b.loops {
		if err := losetup.Detach(ctx, device); err != nil && !errors.Is(err, losetup.ErrNotAttached) {
			all = errors.Join(all, err)
		}
	}
	b.loops = nil
	return all
}

// format makes a file system on a device and mounts it. Nothing is left to be
// initialised in the background, where it would disturb the runs.
func (b *bench) format(ctx context.Context, kind, device, name string) (string, error) {
	args := map[string][]string{
		result.Ext4: {"mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", device},
		result.XFS:  {"mkfs.xfs", "-q", "-f", device},
	}[kind]
	if _, err := b.place.Run(ctx, args...); err != nil {
		return "", err
	}
	dir := b.place.Path(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := syscall.Mount(device, dir, kind, syscall.MS_NOATIME, ""); err != nil {
		return "", fmt.Errorf("mounting %s (%s) on %s: %w", device, kind, dir, err)
	}
	return dir, nil
}

// fsSlack is what a file system needs beside the file that is measured: XFS takes
// no device under 300 MiB.
const fsSlack = 320 << 20

// prepare makes the targets ready: stores, mounts, loop devices, file systems, all
// filled.
func (b *bench) prepare(ctx context.Context, targets []*target) error {
	type key struct{ subject, transport string }
	groups := map[key][]*target{}
	var order []key
	for _, t := range targets {
		k := key{t.subject, t.transport}
		if len(groups[k]) == 0 {
			order = append(order, k)
		}
		groups[k] = append(groups[k], t)
	}
	for _, k := range order {
		var err error
		switch k.subject {
		case result.Null, result.Kvbfs:
			err = b.prepareOwn(ctx, k.subject, k.transport, groups[k])
		default:
			err = b.preparePeer(ctx, groups[k])
		}
		if errors.Is(err, errNoRing) && b.opt.Transport == both {
			b.drop(k.transport, err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// drop goes on without a transport that is not to be had after all. Its targets
// stay without a path.
func (b *bench) drop(transport string, why error) {
	if slices.Contains(b.transports, transport) {
		b.skip("%s: %v", transport, why)
		b.transports = slices.DeleteFunc(b.transports, func(t string) bool { return t == transport })
	}
}

// prepared leaves out what is on a target that could not be had.
func (p *plan) prepared() {
	p.all = slices.DeleteFunc(p.all, func(m measurement) bool { return m.target != nil && m.target.path == "" })
	p.targets = slices.DeleteFunc(p.targets, func(t *target) bool { return t.path == "" })
}

// prepareOwn mounts one subject over one transport. A file system has a volume of
// its own; file and loop device share one.
func (b *bench) prepareOwn(ctx context.Context, subject, transport string, targets []*target) error {
	name := subject + "-" + transport
	b.show.step("mounting %s over %s", subject, transport)
	sizes := map[string]int64{}
	volumes := map[string]string{}
	for _, t := range targets {
		kind, size := "disk", b.opt.size
		if t.place == result.Ext4 || t.place == result.XFS {
			kind, size = t.place, b.opt.size+b.opt.size/8+fsSlack
		}
		volumes[t.place] = b.volume(transport, kind)
		sizes[volumes[t.place]] = size
	}
	url := b.url
	if subject == result.Null {
		url = "null:"
	}
	m, err := b.serve(ctx, name, url, transport, sizes)
	if err != nil {
		return err
	}
	filled := false
	for _, t := range targets {
		t.pid, t.image = m.pid, m.image(volumes[t.place])
		if err := b.ready(ctx, t, name); err != nil {
			return err
		}
		isDisk := t.place == result.File || t.place == result.Loop
		if subject == result.Null || isDisk && filled {
			continue
		}
		if err := b.fill(ctx, strings.Join([]string{subject, transport, t.place}, " "), t.path, b.opt.size); err != nil {
			return err
		}
		filled = filled || isDisk
	}
	return nil
}

// ready sets what fio opens.
func (b *bench) ready(ctx context.Context, t *target, name string) error {
	if t.place == result.File || t.place == result.Device {
		t.path = t.image
		return nil
	}
	device, err := b.attach(ctx, t.image)
	if err != nil {
		return err
	}
	t.path = device
	if t.place == result.Loop {
		return nil
	}
	dir, err := b.format(ctx, t.place, device, name+"-"+t.place)
	if err != nil {
		return err
	}
	t.path = filepath.Join(dir, "data")
	return nil
}

// preparePeer makes the file or device of somebody else ready.
func (b *bench) preparePeer(ctx context.Context, targets []*target) error {
	for i, t := range targets {
		if err := b.ready(ctx, t, t.subject); err != nil {
			return err
		}
		if i == 0 {
			if err := b.fill(ctx, t.subject, t.path, b.opt.size); err != nil {
				return err
			}
		}
	}
	return nil
}

// volume names a scratch volume, so that it cannot be one of the user's.
func (b *bench) volume(transport, kind string) string {
	return strings.Join([]string{filepath.Base(b.place.Dir), transport, kind}, "-")
}

// madeVolume is a volume that must be removed from a store that is not ours.
type madeVolume struct{ url, name string }

// removeVolumes removes what was made on a store that stays.
func (b *bench) removeVolumes(ctx context.Context) error {
	var mine []madeVolume
	for _, v := range b.made {
		if b.foreign && v.url == b.url {
			mine = append(mine, v)
		}
	}
	if b.made = nil; len(mine) == 0 {
		return nil
	}
	out, err := b.place.Kvbfs(ctx, "volume", "ls", "--json", "--store", b.url)
	if err != nil {
		return fmt.Errorf("looking for volumes to remove from %s: %w", b.url, err)
	}
	var there []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal([]byte(out), &there); err != nil {
		return fmt.Errorf("kvbfs volume ls printed %q: %w", out, err)
	}
	var all error
	for _, v := range mine {
		for _, e := range there {
			if e.Name != v.name {
				continue
			}
			if _, err := b.place.Kvbfs(ctx, "volume", "rm", "--yes", v.name, "--store", v.url); err != nil {
				all = errors.Join(all, fmt.Errorf("volume %s is left on %s: %w", v.name, v.url, err))
			}
		}
	}
	return all
}
