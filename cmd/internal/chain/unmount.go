package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
)

// UnmountVerb is the hidden verb of this program that unmounts the file system on
// DIR and ends with the number of the error as its status.
const UnmountVerb = "unmount-child"

func (m *machine) Unmount(ctx context.Context, at string, lazy bool) error {
	var err error
	if lazy {
		err = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	} else {
		err = m.unmountChild(ctx, at)
	}
	if errors.Is(err, unix.EPERM) {
		args := []string{"-u", at}
		if lazy {
			args = []string{"-u", "-z", at}
		}
		return m.Tool(ctx, "fusermount3", args...)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}

// unmountChild unmounts in a child: to write what is dirty the kernel waits for
// the store, and while it does no signal ends the process that asked. A child
// that waits when ctx ends is left behind and ends with the unmount.
func (m *machine) unmountChild(ctx context.Context, at string) error {
	cmd := exec.Command(m.exe, UnmountVerb, "--", at)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is ours
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-done:
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			return syscall.Errno(exit.ExitCode())
		}
		return err
	}
}

// Unmount is what UnmountVerb does. It does not return.
func Unmount(at string) {
	err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		os.Exit(int(errno))
	}
	os.Exit(0)
}

func (m *machine) Silent(ctx context.Context, dir string) []string {
	d, ok := daemon.FindDir(dir)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var s daemon.Status
	if err := daemon.Call(ctx, d, "status", nil, &s); err != nil {
		return nil // others say that
	}
	var servers []string
	for _, u := range s.Unreachable {
		servers = append(servers, u.Server)
	}
	return servers
}

func (m *machine) WaitsFor(ctx context.Context, dir string) string {
	d, ok := daemon.FindDir(dir)
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	var s daemon.Status
	if err := daemon.Call(ctx, d, "status", nil, &s); err != nil {
		return err.Error()
	}
	return s.WaitsFor()
}

const (
	// patience is longer than what is stored by a store that works well takes as a rule.
	patience = 3 * time.Second
	// silence is how long a step that waits says nothing more.
	silence = time.Minute
)

// slowly runs a step that may have to wait for the store on dir, and tells now and
// then what for: nobody else would, where no terminal shows the steps.
func (c *Chain) slowly(ctx context.Context, what, dir string, step func() error) error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	for wait := c.patience; ; wait = min(2*wait, silence) {
		t := time.NewTimer(wait)
		select {
		case err := <-done:
			t.Stop()
			return err
		case <-t.C:
		}
		if why := c.sys.WaitsFor(ctx, dir); why != "" {
			c.Notice("waiting for the %s: %s", what, why)
			continue
		}
		c.Notice("waiting for the %s", what)
	}
}

// tellSilent says what a Down waits for.
func (c *Chain) tellSilent(ctx context.Context, rec *record) {
	servers := c.sys.Silent(ctx, rec.Dir)
	if len(servers) == 0 {
		return
	}
	c.Notice("waiting for %s, which does not answer: what is not stored is written first. If it is gone for good, interrupt this, and `kvbfs umount --force %s` gives up what is not stored",
		strings.Join(servers, ", "), rec.Dir)
}

// downInterrupted is a context.Canceled for people; it holds the volume's name.
type downInterrupted string

func (d downInterrupted) Error() string {
	return fmt.Sprintf("interrupted: %s may be down in part; `kvbfs down %s` goes on with it", string(d), string(d))
}

func (downInterrupted) Is(target error) bool { return target == context.Canceled }
