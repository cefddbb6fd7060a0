package chain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/losetup"
)

const testStore = "file:///store"

var errInjected = errors.New("injected")

// fake is a machine that is made up. Directories below the runtime directory and
// the mount point are real, everything else is here.
type fake struct {
	daemons []daemon.Mount
	caching *daemon.Caching // of the mounts that are started
	table   []losetup.Mount
	devices []losetup.Device
	dead    map[string]bool // mount points whose daemon is gone
	// toolErrs are what the next tools fail with.
	toolErrs []error
	looked   map[string]int  // how often they were probed
	broken   map[string]bool // devices that answer EIO
	volumes  map[string][]byte
	sizes    map[string]int64
	created  map[string]uint64   // how often a volume of that name was made
	users    map[string][]string // of mount points and devices
	procs    map[int]bool
	later    []string // devices that go with their last user
	calls    int
	failAt   int  // the call that fails; 0: none
	after    bool // it fails after it had its effect
	cancel   context.CancelFunc
	said     []string
	mounts   []string // the flags of each `kvbfs mount`
	silent   []string
	why      string                   // what the mount of the store waits for
	hangs    map[string]chan struct{} // calls that wait until this is closed
	held     int
	// provisions is the answer of the store to provisioning.
	provisions  error
	capacity    int64
	provisioned []span
}

func newFake() *fake {
	return &fake{dead: map[string]bool{}, looked: map[string]int{}, broken: map[string]bool{}, volumes: map[string][]byte{}, sizes: map[string]int64{}, created: map[string]uint64{},
		users: map[string][]string{}, procs: map[int]bool{}, held: -1, provisions: syscall.EOPNOTSUPP}
}

// op is one call with an effect.
func (f *fake) op(effect func() error) error {
	f.calls++
	fails := f.calls == f.failAt
	if fails && !f.after {
		return errInjected
	}
	if err := effect(); err != nil {
		return err
	}
	if fails && f.failAt != 0 {
		if f.cancel != nil {
			f.cancel()
		}
		return errInjected
	}
	return nil
}

func (f *fake) Daemons() ([]daemon.Mount, error)   { return slices.Clone(f.daemons), nil }
func (f *fake) Table() []losetup.Mount             { return slices.Clone(f.table) }
func (f *fake) Devices() ([]losetup.Device, error) { return slices.Clone(f.devices), nil }
func (f *fake) DeviceUsers(d string) []string      { return f.users[d] }
func (f *fake) TreeUsers(dir string) []string {
	users := slices.Clone(f.users[dir])
	for _, d := range f.devices {
		if filepath.Dir(d.Backing) == dir {
			users = append(users, d.Path)
		}
	}
	return users
}
func (f *fake) Hold(fd int) int              { before := f.held; f.held = fd; return before }
func (f *fake) LookPath(string) error        { return nil }
func (f *fake) Alive(pid int, _ string) bool { return f.procs[pid] }
func (f *fake) Find(context.Context, string, ...string) (int, error) {
	for pid := range f.procs {
		return pid, nil
	}
	return 0, nil
}
func (f *fake) DetachLater(d losetup.Device) error {
	f.later = append(f.later, d.Path)
	return nil
}
func (f *fake) serves(dir string) bool {
	return !f.dead[dir] && slices.ContainsFunc(f.table, func(m losetup.Mount) bool { return m.Point == dir })
}

func (f *fake) Probe(_ context.Context, dir string) error {
	if !f.dead[dir] {
		return nil
	}
	// The first look may meet the daemon while it dies.
	if f.looked[dir]++; f.looked[dir] == 1 {
		return &os.PathError{Op: "statfs", Path: dir, Err: syscall.ECANCELED}
	}
	return syscall.ENOTCONN
}

func (f *fake) ImageSize(_ context.Context, image string) (int64, error) {
	if !f.serves(filepath.Dir(image)) {
		return 0, syscall.ENOTCONN
	}
	size, ok := f.sizes[filepath.Base(image)]
	if !ok {
		return 0, os.ErrNotExist
	}
	return size, nil
}

func (f *fake) ImageID(ctx context.Context, image string) (uint64, error) {
	_, err := f.ImageSize(ctx, image)
	return f.created[filepath.Base(image)] + 1, err
}

func (f *fake) Read(_ context.Context, path string, n int) ([]byte, error) {
	if f.broken[path] {
		return nil, &os.PathError{Op: "read", Path: path, Err: syscall.EIO}
	}
	for _, d := range f.devices {
		if d.Path == path {
			path = d.Backing
		}
	}
	return slices.Clone(f.volumes[filepath.Base(path)])[:n], nil
}

func (f *fake) Answers(_ context.Context, device string) error {
	if f.broken[device] {
		return &os.PathError{Op: "read", Path: device, Err: syscall.EIO}
	}
	return nil
}

func (f *fake) Wipe(_ context.Context, path string, n int) error {
	return f.op(func() error { clear(f.head(path)); return nil })
}

func (f *fake) ReadAt(_ context.Context, path string, off int64, n int) ([]byte, error) {
	head := f.head(path)
	return slices.Clone(head[min(off, int64(len(head))):min(off+int64(n), int64(len(head)))]), nil
}

func (f *fake) Provision(_ context.Context, image string, parts ...span) error {
	f.provisioned = append(f.provisioned, parts...)
	return f.provisions
}

func (f *fake) Capacity(context.Context, string) (int64, error) { return f.capacity, nil }

func (f *fake) head(path string) []byte {
	for _, d := range f.devices {
		if d.Path == path {
			path = d.Backing
		}
	}
	return f.volumes[filepath.Base(path)]
}

func (f *fake) Attach(_ context.Context, image string) (d losetup.Device, existing bool, err error) {
	for _, d := range f.devices {
		if d.Backing == image {
			return d, true, nil
		}
	}
	// As losetup does: an attach that fails leaves nothing.
	f.calls++
	if f.calls == f.failAt {
		return d, false, errInjected
	}
	d = losetup.Device{Path: fmt.Sprintf("/dev/loop%d", 90+len(f.devices)), Backing: image, DirectIO: true}
	f.devices = append(f.devices, d)
	return d, false, nil
}

func (f *fake) Detach(_ context.Context, d losetup.Device) error {
	device := d.Path
	return f.op(func() error {
		if len(f.users[device]) > 0 || slices.ContainsFunc(f.table, func(m losetup.Mount) bool { return m.Source == device }) {
			return losetup.ErrBusy
		}
		delete(f.broken, device)
		n := len(f.devices)
		f.devices = slices.DeleteFunc(f.devices, func(d losetup.Device) bool { return d.Path == device })
		if len(f.devices) == n {
			return losetup.ErrNotAttached
		}
		return nil
	})
}

func (f *fake) Mount(_ context.Context, device, at string, fs filesystem) error {
	return f.op(func() error {
		f.table = append(f.table, losetup.Mount{Point: at, Type: fs.name, Source: device})
		return nil
	})
}

func (f *fake) Silent(context.Context, string) []string { return f.silent }

func (f *fake) WaitsFor(_ context.Context, dir string) string { return f.why }

func (f *fake) Unmount(_ context.Context, at string, lazy bool) error {
	f.hang("unmount")
	return f.op(func() error {
		if len(f.users[at]) > 0 && !lazy {
			return syscall.EBUSY
		}
		for i := len(f.table) - 1; i >= 0; i-- {
			if f.table[i].Point == at {
				f.table = slices.Delete(f.table, i, i+1)
				delete(f.dead, at)
				clear(f.procs) // fuse2fs ends
				for i, d := range f.devices {
					if filepath.Dir(d.Backing) == at { // as the kernel spells it then
						f.devices[i].Backing = "/" + filepath.Base(d.Backing)
					}
				}
				return nil
			}
		}
		return syscall.EINVAL
	})
}

func (f *fake) Kvbfs(_ context.Context, store string, args ...string) error {
	f.hang(args[0])
	return f.op(func() error {
		switch strings.Join(args[:min(2, len(args))], " ") {
		case "volume create":
			if f.calls == f.failAt && f.after {
				if f.cancel == nil {
					return errInjected // one that fails makes nothing
				}
				f.cancel() // one that is interrupted comes to its end
				f.failAt = 0
			}
			f.create(args[3])
			_, err := fmt.Sscanf(args[2], "--size=%d", new(int64))
			return err
		case "volume rm":
			delete(f.volumes, args[3])
			delete(f.sizes, args[3])
			return nil
		}
		switch args[0] {
		case "mount":
			f.serve(args[1], store)
			f.mounts = append(f.mounts, strings.Join(args[2:], " "))
			return nil
		case "umount":
			if len(f.TreeUsers(args[1])) > 0 {
				return errors.New("busy")
			}
			f.table = slices.DeleteFunc(f.table, func(m losetup.Mount) bool { return m.Point == args[1] })
			f.daemons = slices.DeleteFunc(f.daemons, func(m daemon.Mount) bool { return m.Dir == args[1] })
			return nil
		}
		return fmt.Errorf("kvbfs %v is not known", args)
	})
}

// hang waits for as long as the call is told to.
func (f *fake) hang(call string) {
	if until := f.hangs[call]; until != nil {
		<-until
	}
}

// create makes an empty volume.
func (f *fake) create(name string) {
	f.volumes[name], f.sizes[name] = make([]byte, probeSize), DefaultSize
	f.created[name]++
}

// serve starts a daemon.
func (f *fake) serve(dir, store string) {
	f.daemons = append(f.daemons, daemon.Mount{Dir: dir, Store: store, Caching: f.caching})
	f.table = append(f.table, losetup.Mount{Point: dir, Type: "fuse.kvbfs", Source: store})
}

// crash kills all daemons.
func (f *fake) crash() {
	for _, d := range f.daemons {
		f.dead[d.Dir] = true
	}
	f.daemons = nil
	for _, d := range f.devices {
		f.broken[d.Path] = true
	}
}

// Tool is mkfs.
func (f *fake) Tool(_ context.Context, name string, args ...string) error {
	if len(f.toolErrs) > 0 {
		err := f.toolErrs[0]
		f.toolErrs = f.toolErrs[1:]
		return err
	}
	return f.op(func() error { writeMagic(f.head(args[len(args)-1]), name); return nil })
}

func writeMagic(head []byte, tool string) {
	switch tool {
	case "mke2fs":
		binary.LittleEndian.PutUint16(head[1024+56:], 0xef53)
		binary.LittleEndian.PutUint32(head[1024+96:], 0x40)
	case "mkfs.xfs":
		copy(head, "XFSB")
	case "mkfs.btrfs":
		copy(head[0x10040:], "_BHRfS_M")
	}
}

func (f *fake) Spawn(name string, args ...string) (int, error) {
	err := f.op(func() error {
		f.procs[77] = true
		f.table = append(f.table, losetup.Mount{Point: args[1], Type: "fuse.ext4", Source: args[0]})
		return nil
	})
	return 77, err
}

// start returns a Chain on the fake and a request that works.
func start(t *testing.T, f *fake) (*Chain, Request) {
	t.Helper()
	t.Setenv("KVBFS_STORE", testStore)
	c, err := newChain(t.TempDir(), f, nil, func(format string, args ...any) { f.said = append(f.said, fmt.Sprintf(format, args...)) })
	if err != nil {
		t.Fatal(err)
	}
	return c, Request{Name: "vol", At: filepath.Join(t.TempDir(), "deep", "at")}
}

// leftovers are what a chain left on the machine.
func leftovers(c *Chain, f *fake, req Request) []string {
	var left []string
	for _, m := range f.table {
		left = append(left, "mount "+m.Point)
	}
	for _, d := range f.devices {
		left = append(left, "device "+d.Path)
	}
	for v := range f.volumes {
		left = append(left, "volume "+v)
	}
	for p := range f.procs {
		left = append(left, fmt.Sprint("process ", p))
	}
	if rec, err := c.load(req.Name); rec != nil || err != nil {
		left = append(left, "a record")
	}
	if _, err := os.Lstat(filepath.Dir(req.At)); err == nil {
		left = append(left, "directory "+filepath.Dir(req.At))
	}
	if _, err := os.Lstat(c.privateDir(testStore)); err == nil {
		left = append(left, "the private directory")
	}
	return left
}
