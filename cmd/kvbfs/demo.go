package main

import (
	"os"

	"golang.org/x/term"

	"github.com/kvbfs/kvbfs/cmd/internal/demo"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// demoCmd shows everything in a scratch place.
type demoCmd struct {
	Size      string `default:"2G" help:"Size of the volume that takes the file system (sparse)."`
	StoreOnly string `enum:",file,memcached" default:"" placeholder:"KIND" help:"Show one store only: file or memcached."`
	Keep      bool   `help:"Leave mounts and servers running, and say how to end them."`
	JSON      bool   `name:"json" help:"Print the results as JSON."`
}

func (c *demoCmd) Run(g *globals) error {
	// The tree alone takes up to 64 MiB, and ext4 wants its journal.
	if n, err := stack.ParseSize(c.Size); err != nil {
		return usageError{err}
	} else if n < 256<<20 {
		return usagef("--size %s is too small for the demo: at least 256M", c.Size)
	}
	opt := demo.Options{Size: c.Size, Only: c.StoreOnly, Keep: c.Keep, JSON: c.JSON, Out: stdout}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		opt.Notify = os.Stderr
	}
	// The demo handles signals itself: also a second one must not end it before
	// everything is taken down, which is bounded in time.
	g.release()
	return demo.Run(g.ctx, opt)
}
