package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/losetup"
)

// system is everything that a Chain asks of the machine. What may touch a mount
// takes a context and returns when it ends, even if the mount hangs.
type system interface {
	// Daemons are those that live; Table is the mount table.
	Daemons() ([]daemon.Mount, error)
	Table() []losetup.Mount
	// Probe asks a mount for a sign of life: fusefs.Unserved tells of the error if it is dead.
	Probe(ctx context.Context, dir string) error
	ImageSize(ctx context.Context, image string) (int64, error)
	// ImageID tells the volumes apart that have one name after another.
	ImageID(ctx context.Context, image string) (uint64, error)
	// Read returns the first n bytes of a device or image; Wipe zeroes them.
	Read(ctx context.Context, path string, n int) ([]byte, error)
	Wipe(ctx context.Context, path string, n int) error
	// Answers reads from a device itself, not from what the kernel remembers of it:
	// syscall.EIO if the mount of its file is dead.
	Answers(ctx context.Context, device string) error
	// ReadAt reads less than n bytes only at the end.
	ReadAt(ctx context.Context, path string, off int64, n int) ([]byte, error)
	// Provision gives parts of an image a place in the store, by fallocate:
	// syscall.EOPNOTSUPP where the store has no need of it.
	Provision(ctx context.Context, image string, parts ...span) error
	// Capacity of the store below an image, in bytes.
	Capacity(ctx context.Context, image string) (int64, error)

	Devices() ([]losetup.Device, error)
	Attach(ctx context.Context, image string) (d losetup.Device, existing bool, err error)
	Detach(ctx context.Context, d losetup.Device) error
	DetachLater(d losetup.Device) error
	// DeviceUsers and TreeUsers name who uses a device, or a mount: loop devices,
	// mounts and processes.
	DeviceUsers(device string) []string
	TreeUsers(dir string) []string

	// Mount and Unmount are the kernel's; lazy takes the mount out of sight at
	// once and away when its last user is gone.
	Mount(ctx context.Context, device, at string, fs filesystem) error
	Unmount(ctx context.Context, at string, lazy bool) error
	// Silent are the servers of the mount on dir that do not answer now.
	Silent(ctx context.Context, dir string) []string
	// WaitsFor says what the mount on dir waits for; empty: nothing that can be seen.
	WaitsFor(ctx context.Context, dir string) string

	// Hold sets the descriptor of a lock that children inherit, and returns the one
	// before; -1 for none.
	Hold(fd int) (before int)
	// Kvbfs runs this program; store, with its secrets, goes by the environment.
	Kvbfs(ctx context.Context, store string, args ...string) error
	// Tool runs another program; LookPath says whether there is one.
	Tool(ctx context.Context, name string, args ...string) error
	LookPath(name string) error
	// Spawn starts a program that outlives this one. Alive says whether it runs, Find
	// which process runs with these arguments first; 0: none.
	Spawn(name string, args ...string) (pid int, err error)
	Alive(pid int, name string) bool
	Find(ctx context.Context, name string, args ...string) (pid int, err error)
}

// machine is the real system.
type machine struct {
	exe     string // this program
	scratch string // private directory for the output of children
	held    int    // descriptor of a lock that children inherit, -1 for none
}

func (m *machine) Hold(fd int) int {
	before := m.held
	m.held = fd
	return before
}

func (m *machine) Daemons() ([]daemon.Mount, error)   { return daemon.Mounts() }
func (m *machine) Table() []losetup.Mount             { return losetup.MountTable() }
func (m *machine) DeviceUsers(device string) []string { return losetup.Users(device) }
func (m *machine) TreeUsers(dir string) []string      { return fusefs.Users(dir) }

func (m *machine) Devices() ([]losetup.Device, error) {
	list, err := losetup.List()
	if errors.Is(err, losetup.ErrNoLoop) {
		return nil, nil // without root nobody needs them; Attach says why it cannot
	}
	return list, err
}

func (m *machine) Attach(ctx context.Context, image string) (losetup.Device, bool, error) {
	return losetup.Attach(ctx, image, losetup.Options{Warn: func(msg string) { fmt.Fprintln(os.Stderr, "kvbfs: warning:", msg) }})
}

func (m *machine) Detach(ctx context.Context, d losetup.Device) error { return losetup.Detach(ctx, d) }
func (m *machine) DetachLater(d losetup.Device) error                 { return losetup.DetachLater(d) }

func (m *machine) ImageSize(ctx context.Context, image string) (int64, error) {
	return imageSize(ctx, image)
}

// ImageID is the inode number, which a mount makes of the volume's UUID.
func (m *machine) ImageID(ctx context.Context, image string) (uint64, error) {
	return bounded(ctx, image, func() (uint64, error) {
		var st unix.Stat_t
		if err := unix.Lstat(image, &st); err != nil {
			return 0, &os.PathError{Op: "lstat", Path: image, Err: err}
		}
		return st.Ino, nil
	})
}

// lettingGo is what a call has to come back when it was interrupted, before it is
// left behind.
const lettingGo = time.Second

// bounded runs a call that may hang in the kernel and leaves it behind when ctx
// ends or the mount had time enough to answer.
func bounded[T any](ctx context.Context, what string, call func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	got := make(chan answer, 1)
	go func() {
		v, err := call()
		got <- answer{v, err}
	}()
	t := time.NewTimer(answerWait)
	defer t.Stop()
	var zero T
	select {
	case a := <-got:
		return a.v, a.err
	case <-ctx.Done():
		// What the call has open keeps us from undoing what was made.
		select {
		case <-got:
		case <-time.After(lettingGo):
		}
		return zero, ctx.Err()
	case <-t.C:
		return zero, fmt.Errorf("%s does not answer: see `kvbfs status`", what)
	}
}

func (m *machine) Probe(ctx context.Context, dir string) error {
	_, err := bounded(ctx, dir, func() (struct{}, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return struct{}{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
		}
		return struct{}{}, nil
	})
	return err
}

func (m *machine) Read(ctx context.Context, path string, n int) ([]byte, error) {
	return m.ReadAt(ctx, path, 0, n)
}

func (m *machine) ReadAt(ctx context.Context, path string, off int64, n int) ([]byte, error) {
	return bounded(ctx, path, func() ([]byte, error) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		buf := make([]byte, n)
		for done := 0; done < n; {
			got, err := unix.Pread(fd, buf[done:], off+int64(done))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return nil, &os.PathError{Op: "read", Path: path, Err: err}
			}
			if got == 0 {
				return buf[:done], nil
			}
			done += got
		}
		return buf, nil
	})
}

func (m *machine) Answers(ctx context.Context, device string) error {
	_, err := bounded(ctx, device, func() (struct{}, error) {
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return struct{}{}, &os.PathError{Op: "open", Path: device, Err: err}
		}
		defer unix.Close(fd)
		// A page of its own is aligned as direct I/O wants it.
		buf, err := unix.Mmap(-1, 0, probeBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return struct{}{}, os.NewSyscallError("mmap", err)
		}
		defer func() { _ = unix.Munmap(buf) }()
		for {
			_, err := unix.Pread(fd, buf, 0)
			if err == nil {
				return struct{}{}, nil
			}
			if !errors.Is(err, unix.EINTR) {
				return struct{}{}, &os.PathError{Op: "read", Path: device, Err: err}
			}
		}
	})
	return err
}

// provisionPiece is how much one fallocate provisions: the kernel holds up all
// other writes of the image meanwhile.
const provisionPiece = 8 << 20

// provisionEnd bounds how long an interrupted Provision waits for the piece that is
// in work.
const provisionEnd = 5 * time.Second

func (m *machine) Provision(ctx context.Context, image string, parts ...span) error {
	moved, done := make(chan struct{}, 1), make(chan error, 1)
	go func() { done <- provision(ctx, image, parts, moved) }()
	silent := time.NewTimer(answerWait)
	defer silent.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-moved:
			silent.Reset(answerWait)
		case <-silent.C:
			return fmt.Errorf("%s does not answer: see `kvbfs status`", image)
		case <-ctx.Done():
			// The image must be closed, or what is undone next is busy.
			select {
			case <-done:
			case <-time.After(provisionEnd):
			}
			return ctx.Err()
		}
	}
}

// provision does it piece by piece, until ctx ends.
func provision(ctx context.Context, image string, parts []span, moved chan<- struct{}) (err error) {
	fd, err := unix.Open(image, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: image, Err: err}
	}
	defer func() { err = cmp.Or(err, unix.Close(fd)) }()
	for _, p := range parts {
		for off, end := p.off, p.off+p.n; off < end; off += provisionPiece {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := fallocate(fd, off, min(provisionPiece, end-off)); err != nil {
				return err
			}
			select {
			case moved <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

func fallocate(fd int, off, n int64) error {
	for {
		err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fallocate", err)
		}
	}
}

func (m *machine) Capacity(ctx context.Context, image string) (int64, error) {
	return bounded(ctx, image, func() (int64, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(filepath.Dir(image), &st); err != nil {
			return 0, &os.PathError{Op: "statfs", Path: image, Err: err}
		}
		return int64(st.Blocks) * st.Bsize, nil
	})
}

func (m *machine) Wipe(ctx context.Context, path string, n int) error {
	_, err := bounded(ctx, path, func() (struct{}, error) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return struct{}{}, &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		for done := 0; done < n; {
			put, err := unix.Pwrite(fd, make([]byte, n-done), int64(done))
			if err != nil && !errors.Is(err, unix.EINTR) {
				return struct{}{}, &os.PathError{Op: "write", Path: path, Err: err}
			}
			done += max(put, 0)
		}
		return struct{}{}, unix.Fsync(fd)
	})
	return err
}

func (m *machine) Mount(ctx context.Context, device, at string, fs filesystem) error {
	err := unix.Mount(device, at, fs.name, unix.MS_NOSUID|unix.MS_NODEV, fs.mount)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("this kernel does not know %s: try `modprobe %s`", fs.name, fs.name)
	case err != nil:
		if fs.name == "xfs" && errors.Is(err, unix.EINVAL) {
			if why := xfsRefused(device, at, "/sys", "/proc"); why != nil {
				return why
			}
		}
		return fmt.Errorf("mount %s on %s: %w (see `dmesg`)", device, at, err)
	}
	return nil
}

func (m *machine) Kvbfs(ctx context.Context, store string, args ...string) error {
	var env []string
	if store != "" {
		env = append(os.Environ(), "KVBFS_STORE="+store)
	}
	return m.run(ctx, env, m.exe, args...)
}

func (m *machine) Tool(ctx context.Context, name string, args ...string) error {
	path, err := lookPath(name)
	if err != nil {
		return err
	}
	return m.run(ctx, nil, path, args...)
}

func (m *machine) LookPath(name string) error {
	_, err := lookPath(name)
	return err
}

// lookPath finds a program also where an ordinary user's PATH does not look.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

// childGrace is how long a child may take to end after SIGTERM.
const childGrace = 20 * time.Second

// run runs a child in a process group of its own: Ctrl-C is ours to pass on. Its
// output goes to a file, not a pipe: a daemon that it leaves behind would keep a
// pipe open and us waiting.
func (m *machine) run(ctx context.Context, env []string, path string, args ...string) error {
	out, err := os.CreateTemp(m.scratch, "output-")
	if err != nil {
		return err
	}
	defer out.Close()
	_ = os.Remove(out.Name())
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if m.held >= 0 {
		// It becomes descriptor 3. A daemon that the child starts does not get it:
		// there it is replaced (daemon.ReadyFD).
		dup, err := unix.FcntlInt(uintptr(m.held), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		lock := os.NewFile(uintptr(dup), "lock")
		defer lock.Close()
		cmd.ExtraFiles = []*os.File{lock}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = childGrace
	err = cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	said := make([]byte, 64<<10)
	n, _ := out.ReadAt(said, 0)
	return childError(filepath.Base(path), string(said[:n]), err)
}

// childError makes one line of what a child said before it failed.
func childError(name, said string, err error) error {
	lines := strings.FieldsFunc(said, func(r rune) bool { return r == '\n' || r == '\r' })
	lines = slices.DeleteFunc(lines, func(l string) bool { return strings.TrimSpace(l) == "" })
	if len(lines) == 0 {
		return fmt.Errorf("%s: %w", name, err)
	}
	// kvbfs itself says the reason last; tools follow it with their usage.
	for _, l := range slices.Backward(lines) {
		if text, own := strings.CutPrefix(l, "kvbfs: "); own {
			return errors.New(text)
		}
	}
	return fmt.Errorf("%s: %s", name, strings.TrimPrefix(strings.TrimSpace(lines[0]), name+": "))
}
