package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

type volumeCreateCmd struct {
	storeFlag
	Name      string `arg:"" help:"Name: letters, digits, dot, dash and underscore, at most 64."`
	Size      string `required:"" help:"Size, as 10G; a multiple of 4096 bytes." placeholder:"SIZE"`
	Dangerous bool   `help:"Use a store that may lose data as it is set up."`
}

func (c *volumeCreateCmd) Run(g *globals) error {
	size, err := volumeSize(c.Name, c.Size)
	if err != nil {
		return err
	}
	return c.on(g, c.Name, c.Dangerous, func(v daemon.Volumes) error {
		if err := v.Create(g.ctx, c.Name, size); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %s, empty\n", c.Name, stack.FormatSize(size))
		return nil
	})
}

// volumeSize checks a name and a size before any store is asked.
func volumeSize(name, size string) (int64, error) {
	if err := pool.CheckName(name); err != nil {
		return 0, err
	}
	n, err := stack.ParseSize(size)
	if err != nil {
		return 0, err
	}
	if rest := n % kvstore.BlockSize; rest != 0 && n > 0 {
		return 0, usagef("bad size %s: not a multiple of %d bytes; %d is", size, kvstore.BlockSize, n-rest+kvstore.BlockSize)
	}
	return n, pool.CheckSize(n)
}

type volumeResizeCmd struct {
	storeFlag
	Name        string `arg:"" help:"Volume."`
	Size        string `arg:"" help:"New size, as 20G."`
	AllowShrink bool   `help:"Let the volume become smaller; what lies beyond the new end is lost."`
	Dangerous   bool   `help:"Use a store that may lose data as it is set up."`
}

func (c *volumeResizeCmd) Help() string {
	return "A loop device on the volume has to be told (losetup -c DEV), and then the file system (resize2fs DEV, xfs_growfs DIR)."
}

func (c *volumeResizeCmd) Run(g *globals) error {
	size, err := volumeSize(c.Name, c.Size)
	if err != nil {
		return err
	}
	return c.on(g, c.Name, c.Dangerous, func(v daemon.Volumes) error {
		err := v.Resize(g.ctx, c.Name, size, c.AllowShrink)
		if errors.Is(err, volume.ErrShrink) && !c.AllowShrink {
			return fmt.Errorf("%w\n  what lies beyond the new end would be lost: add --allow-shrink if you want that", err)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %s\n", c.Name, stack.FormatSize(size))
		return nil
	})
}

type volumeRmCmd struct {
	storeFlag
	Name string `arg:"" help:"Volume."`
	Yes  bool   `short:"y" help:"Do not ask."`
}

func (c *volumeRmCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	return c.on(g, c.Name, true, func(v daemon.Volumes) error {
		info, err := v.Info(g.ctx, c.Name)
		if err != nil {
			return err
		}
		if err := c.confirm(g.ctx, info); err != nil {
			return err
		}
		show := newProgress("removing " + c.Name)
		err = v.Remove(g.ctx, c.Name, show.update)
		show.end()
		if err != nil && g.ctx.Err() != nil {
			return removalInterrupted(c.Name)
		}
		if errors.Is(err, volume.ErrInUse) {
			return inUse(err, c.Store, c.Name, "removed")
		}
		if err == nil {
			fmt.Fprintf(stdout, "%s: removed\n", c.Name)
		}
		return err
	})
}

// inUse names who uses a volume, as far as that is seen from here, and so kept it from
// being changed.
func inUse(err error, store, name, changed string) error {
	url, urlErr := stack.Canonical(store)
	if urlErr != nil {
		return err
	}
	var users []string
	for _, m := range daemon.FindStore(url) {
		users = append(users, fusefs.Users(filepath.Join(m.Dir, name))...)
	}
	if len(users) == 0 {
		return err
	}
	return fmt.Errorf("volume %s is in use by %s: nothing was %s", name, strings.Join(users, ", "), changed)
}

// confirm asks on a terminal; a script says --yes.
func (c *volumeRmCmd) confirm(ctx context.Context, info daemon.VolumeInfo) error {
	if c.Yes {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("removing %s loses its data: add --yes", c.Name)
	}
	held := "size " + stack.FormatSize(info.Size)
	if info.Allocated >= 0 {
		held += ", " + stack.FormatSize(info.Allocated) + " stored"
	}
	fmt.Fprintf(os.Stderr, "Remove %s (%s) and all of its data? [y/N] ", c.Name, held)
	yes, err := agreed(ctx, os.Stdin)
	if err == nil && !yes {
		err = fmt.Errorf("%s is kept", c.Name)
	}
	return err
}

// agreed reads an answer; nothing but a clear yes is one. The end of ctx is no answer,
// also if one arrives with it: a read of a terminal does not end by a signal, so it is
// left behind.
func agreed(ctx context.Context, in io.Reader) (bool, error) {
	answered := make(chan string, 1)
	go func() {
		answer, _ := bufio.NewReader(in).ReadString('\n')
		answered <- strings.ToLower(strings.TrimSpace(answer))
	}()
	answer := ""
	select {
	case answer = <-answered:
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil {
		fmt.Fprintln(os.Stderr) // the question's line has no end yet
		return false, err
	}
	return answer == "y" || answer == "yes", nil
}

type volumeSetCmd struct {
	storeFlag
	Name      string         `arg:"" help:"Volume."`
	IOTimeout *time.Duration `name:"io-timeout" help:"Give an I/O error when a server is silent for so long, as 30s; 0 waits for ever." placeholder:"D"`
}

func (c *volumeSetCmd) Help() string {
	return "It lasts for as long as the volume's mount; `kvbfs mount --io-timeout` sets what volumes begin with."
}

func (c *volumeSetCmd) Run(g *globals) error {
	switch {
	case c.IOTimeout == nil:
		return usagef("nothing to set: --io-timeout")
	case *c.IOTimeout < 0:
		return usagef("--io-timeout must not be negative; 0 waits for ever")
	case *c.IOTimeout > 0 && *c.IOTimeout < time.Millisecond:
		// Daemons are told milliseconds: it would become 0.
		return usagef("--io-timeout %v is too short: at least 1ms, or 0 to wait for ever", *c.IOTimeout)
	}
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	url, err := stack.Canonical(c.Store)
	if err != nil {
		return err
	}
	mounts := daemon.FindStore(url)
	if len(mounts) == 0 {
		return fmt.Errorf("no mount on this machine serves %s: there is nothing to set", url)
	}
	m, err := choose(g.ctx, mounts, c.Name)
	if err != nil {
		return err
	}
	return daemon.Remote{Mount: m}.SetTimeout(g.ctx, c.Name, *c.IOTimeout)
}

// removalInterrupted is a context.Canceled for people; it holds the volume's name.
type removalInterrupted string

func (r removalInterrupted) Error() string {
	return "interrupted: " + string(r) + " may be removed in part; the same command goes on with it"
}

func (removalInterrupted) Is(target error) bool { return target == context.Canceled }
