package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

type abortCmd struct {
	storeFlag
	Target string `arg:"" name:"name|dir" help:"Volume, or the directory of a mount."`
}

func (c *abortCmd) Help() string {
	return "What waits for a server gets an I/O error at once, and so does what comes. NAME: one volume, until it was closed everywhere; its daemon goes on, and what was acknowledged is stored when the volume is opened again on this machine. DIR: the whole mount, also when its daemon is stopped or stuck. A file system on the volume will go read-only: unmount it, and mount it again when the server is back."
}

func (c *abortCmd) Run(g *globals) error {
	if strings.ContainsRune(c.Target, '/') || c.Target == "." || c.Target == ".." {
		return c.mount(g)
	}
	if err := pool.CheckName(c.Target); err != nil {
		return err
	}
	found, err := c.volume(g)
	if err != nil || found {
		return err
	}
	if dir, err := daemon.Canonical(c.Target); err == nil {
		if _, ok := daemon.FUSEMount(dir); ok {
			return c.mount(g)
		}
	}
	return fmt.Errorf("no mount on this machine has volume %s open: there is nothing to abort", c.Target)
}

// volume aborts a volume wherever it is open on this machine.
func (c *abortCmd) volume(g *globals) (found bool, err error) {
	mounts, err := daemon.Mounts()
	if err != nil {
		return false, err
	}
	only := ""
	if c.Store != "" {
		if only, err = stack.Canonical(c.Store); err != nil {
			return false, err
		}
	}
	var failed error
	for _, m := range mounts {
		if only != "" && m.Store != only {
			continue
		}
		var alive daemon.Status // a stopped daemon takes a call and never answers
		if err := askStatus(g.ctx, m, &alive); err != nil {
			failed = fmt.Errorf("%w; `kvbfs abort %s` ends the whole mount", err, m.Dir)
			continue
		}
		err := daemon.Remote{Mount: m}.Abort(g.ctx, c.Target)
		switch {
		case err == nil:
			found = true
			fmt.Fprintf(stdout, "%s: aborted in %s; it can be opened again when it was closed everywhere\n", c.Target, m.Dir)
		case !errors.Is(err, kvstore.ErrAbsent):
			failed = err
		}
	}
	if found {
		return true, nil
	}
	return false, failed
}

func (c *abortCmd) mount(g *globals) error {
	dir, err := daemon.Canonical(c.Target)
	if err != nil {
		return err
	}
	a, err := daemon.Abort(g.ctx, dir)
	if err != nil {
		return err
	}
	text := dir + ": aborted"
	if a.Failed > 0 {
		text += fmt.Sprintf(", %d requests failed", a.Failed)
	}
	if a.Woken {
		text += fmt.Sprintf("; process %d was stopped and goes on", a.PID)
	}
	switch {
	case a.Killed:
		text += fmt.Sprintf("; process %d did not let go and was killed", a.PID)
	case a.Alive:
		text += fmt.Sprintf("; process %d stores what is left and ends", a.PID)
	}
	fmt.Fprintf(stdout, "%s; `kvbfs umount %s` takes the dead mount off\n", text, dir)
	return nil
}
