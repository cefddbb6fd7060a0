package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Aborted says what Abort did.
type Aborted struct {
	Dir    string
	Failed int  // requests that were waiting
	PID    int  // of the daemon; 0: not known, or gone before
	Woken  bool // it was stopped and was let go on
	Killed bool // requests still hung, so it was killed
	Alive  bool // it still stores what is left
}

const (
	// abortWait is how long requests may take to fail after the connection was
	// aborted, and again after the daemon was killed.
	abortWait = 5 * time.Second
	abortStep = 20 * time.Millisecond
)

// Abort fails everything that waits for the FUSE mount on dir, also if its daemon is
// stopped or stuck. It goes by the kernel's list of mounts and its control files and
// never touches the mount. The dead mount stays; umount takes it off.
//
// Over io_uring the kernel ends requests that it gave to a daemon only when that
// takes them, so a stopped daemon is let go on, and one that does not end them is
// killed.
func Abort(ctx context.Context, dir string) (Aborted, error) {
	out := Aborted{Dir: dir}
	m, ok := FUSEMount(dir)
	if !ok {
		return out, fmt.Errorf("%s is not mounted by kvbfs", dir)
	}
	if d, ok := FindDir(dir); ok {
		out.PID = d.PID
	} else if m.Type != "fuse.kvbfs" {
		return out, fmt.Errorf("%s is not mounted by kvbfs (%s, type %s)", dir, m.Source, m.Type)
	}
	out.Failed, _ = m.waiting()
	if err := m.Abort(); err != nil {
		return out, fmt.Errorf("aborting %s: %w", dir, err)
	}
	if out.PID != 0 && stopped(out.PID) {
		out.Woken = unix.Kill(out.PID, syscall.SIGCONT) == nil
	}
	if err := m.settle(ctx, &out); err != nil {
		return out, err
	}
	if n, err := m.waiting(); err == nil && n > 0 {
		return out, fmt.Errorf("%s is aborted, but %d requests still wait; process %d must end first", dir, n, out.PID)
	}
	out.Alive = out.PID != 0 && !out.Killed && running(out.PID)
	return out, ctx.Err()
}

// settle waits for what was aborted to fail, and kills a daemon that does not let go
// in time. Who asked and does not wait any more has not asked for that.
func (m FUSE) settle(ctx context.Context, out *Aborted) error {
	if m.settled(ctx) {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %s is aborted, but requests may still wait; `kvbfs abort %s` goes on with it", out.Dir, out.Dir)
	}
	if out.PID != 0 {
		out.Killed = unix.Kill(out.PID, syscall.SIGKILL) == nil
		m.settled(ctx)
	}
	return nil
}

// waiting is how many requests the kernel has for the mount; an error if that is
// not known, also because the mount is gone.
func (m FUSE) waiting() (int, error) {
	if m.Connection == "" {
		return 0, errors.ErrUnsupported
	}
	f, err := m.control("waiting", unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// control opens a control file of the connection. Where fusectl is not mounted, as in
// containers, it is mounted for us alone, in no place (Linux 5.2).
func (m FUSE) control(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(m.Connection+"/"+name, flags, 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	fsfd, fsErr := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if fsErr != nil {
		return nil, err
	}
	defer unix.Close(fsfd)
	if unix.FsconfigCreate(fsfd) != nil {
		return nil, err
	}
	dir, fsErr := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if fsErr != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, fsErr := unix.Openat(dir, filepath.Base(m.Connection)+"/"+name, flags|unix.O_CLOEXEC, 0)
	if fsErr != nil {
		return nil, &os.PathError{Op: "open", Path: m.Connection + "/" + name, Err: fsErr}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Abort ends the connection by its control file or, where that cannot be had, by the
// first half of a forced unmount, whose second half fails with EBUSY in use.
func (m FUSE) Abort() error {
	err := errors.ErrUnsupported
	if m.Connection != "" {
		var f *os.File
		if f, err = m.control("abort", unix.O_WRONLY); err == nil {
			_, err = f.WriteString("1")
			f.Close()
		}
	}
	if err != nil {
		if forced := unix.Unmount(m.Dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); forced == nil || errors.Is(forced, unix.EBUSY) {
			return nil
		}
	}
	return err
}

// settled waits until no request waits any more; false if some still do in the end, or
// when ctx ends. What cannot be known is taken for settled.
func (m FUSE) settled(ctx context.Context) bool {
	for end := time.Now().Add(abortWait); ; time.Sleep(abortStep) {
		n, err := m.waiting()
		switch {
		case err != nil || n == 0:
			return true
		case time.Now().After(end), ctx.Err() != nil:
			return false
		}
	}
}

// stateOf is the letter of a process's state in /proc, 0 if it is gone.
func stateOf(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := bytes.Cut(stat, []byte(") ")) // the state follows the name
	if err != nil || !ok || len(rest) == 0 {
		return 0
	}
	return rest[0]
}

func stopped(pid int) bool { s := stateOf(pid); return s == 'T' || s == 't' }

func running(pid int) bool { s := stateOf(pid); return s != 0 && s != 'Z' && s != 'X' }
