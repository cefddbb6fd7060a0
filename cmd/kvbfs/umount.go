package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/fusefs"
)

type umountCmd struct {
	Dir   string `arg:"" help:"Directory to unmount."`
	Force bool   `help:"Unmount although it is in use; requests in flight fail and what is not stored is lost."`
}

func (c *umountCmd) Help() string {
	return "It returns when everything is stored and the daemon is gone. A mount that a loop device or a process uses is refused, with who uses it."
}

func (c *umountCmd) Run(g *globals) error {
	if c.Dir == "" {
		return usagef("the directory to unmount is empty: name one") // else it were the current one
	}
	dir, err := daemon.Canonical(c.Dir)
	if err != nil {
		return err
	}
	m, ok := daemon.FindDir(dir)
	if !ok {
		return c.withoutDaemon(dir)
	}
	// A daemon that is stopped takes the call and never answers: ask for what is
	// answered at once first.
	var alive daemon.Status
	if err = askStatus(g.ctx, m, &alive); err == nil {
		err = c.ask(g, m)
	}
	switch {
	case errors.Is(err, fusefs.ErrBusy):
		return busy(dir, err)
	case err != nil && g.ctx.Err() != nil:
		return fmt.Errorf("%s: interrupted; process %d goes on storing what is left", dir, m.PID)
	case errors.Is(err, daemon.ErrNotAnswering) && c.Force:
		return c.forced(dir, m)
	case errors.Is(err, daemon.ErrNotAnswering):
		return fmt.Errorf("%w; `kvbfs umount --force %s` gives up what is not stored", err, dir)
	case err != nil:
		if _, mounted := daemon.FUSEMount(dir); !mounted {
			daemon.WaitGone(g.ctx, m, leaveTime) // it tells what it lost, and ends
		}
		return err
	}
	if !daemon.WaitGone(g.ctx, m, leaveTime) {
		return fmt.Errorf("%s is unmounted and stored, but process %d has not ended yet", dir, m.PID)
	}
	return nil
}

// ask has the daemon unmount, and shows what it waits for.
func (c *umountCmd) ask(g *globals, m daemon.Mount) error {
	return daemon.CallProgress(g.ctx, m, "umount", daemon.UmountParams{Force: c.Force}, nil, func(p daemon.Progress) {
		fmt.Fprintln(os.Stderr, "kvbfs: waiting:", p.Text)
	})
}

// leaveTime is what a daemon has to end after its last answer.
const leaveTime = 10 * time.Second

// busy says who uses a mount, as we see it; else what the daemon said, which is a
// sentence of its own: another mount namespace may have it still.
func busy(dir string, err error) error {
	if list := fusefs.Users(dir); len(list) > 0 {
		return fmt.Errorf("%s is still used by %s", dir, strings.Join(list, ", "))
	}
	return errors.New(strings.TrimPrefix(err.Error(), fusefs.ErrBusy.Error()+": "))
}

// withoutDaemon unmounts what no daemon of this runtime directory serves.
func (c *umountCmd) withoutDaemon(dir string) error {
	m, ok := daemon.FUSEMount(dir)
	if !ok {
		return fmt.Errorf("%s is not mounted by kvbfs", dir)
	}
	dead := m.Dead()
	// A connection that was passed to us has the type that its mounter chose; `kvbfs
	// mount` sends people here with one that is dead.
	if !strings.HasPrefix(m.Type, "fuse.kvbfs") && !(dead && m.Type == "fuse") {
		return fmt.Errorf("%s is not mounted by kvbfs (%s, type %s)", dir, m.Source, m.Type)
	}
	if dead || c.Force {
		if err := daemon.Detach(dir); err != nil {
			return fmt.Errorf("taking the mount off %s: %w", dir, err)
		}
		if dead {
			fmt.Fprintf(stdout, "%s: no daemon served it any more; the dead mount is taken off\n", dir)
		} else {
			fmt.Fprintf(stdout, "%s: taken off by force; its daemon, which is not in this runtime directory, stores what is left when nobody uses it\n", dir)
		}
		return nil
	}
	// Somebody else's daemon, or one with another runtime directory: it drains by
	// itself once it is unmounted.
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		var out []byte
		if out, err = exec.Command("fusermount3", "-u", "--", dir).CombinedOutput(); err != nil {
			err = fmt.Errorf("%s", strings.TrimSpace(string(out)))
		}
	}
	if errors.Is(err, unix.EBUSY) {
		return busy(dir, fmt.Errorf("%s is still used by an unknown process", dir))
	}
	return err
}

// forced ends a mount whose daemon does not answer: requests in flight fail, so
// that their users get an error instead of waiting for ever.
func (c *umountCmd) forced(dir string, m daemon.Mount) error {
	if f, ok := daemon.FUSEMount(dir); ok {
		if err := f.Abort(); err != nil {
			fmt.Fprintln(os.Stderr, "kvbfs: warning: aborting the connection:", err)
		}
		if err := daemon.Detach(dir); err != nil {
			return fmt.Errorf("taking the mount off %s: %w", dir, err)
		}
	}
	fmt.Fprintf(stdout, "%s: taken off by force; process %d does not answer and may have to be killed\n", dir, m.PID)
	return nil
}
