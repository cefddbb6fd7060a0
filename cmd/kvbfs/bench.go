package main

import (
	"errors"
	"os"

	"golang.org/x/term"

	"github.com/kvbfs/kvbfs/cmd/internal/bench"
)

// benchCmd measures each layer's limit and the whole.
type benchCmd struct {
	Store     string   `help:"Measure this store, with scratch volumes that are removed afterwards. Default: private memcached servers on this machine." placeholder:"URL"`
	Transport string   `enum:"auto,dev,uring,both" default:"both" help:"How requests come from the kernel: dev, uring, auto (what a mount would take), or both in turn."`
	Rounds    int      `default:"5" help:"How often everything is measured; the median counts."`
	Seconds   int      `default:"2" help:"Length of each run."`
	Size      string   `placeholder:"SIZE" help:"Size of each volume that is measured; all of it is stored. Default: 256M, with --quick 64M."`
	Quick     bool     `help:"One round of a few works for one second each: to see that it works, not for figures."`
	Only      string   `placeholder:"REGEXP" help:"Measure only what has a name like this. Names: kvbfs/uring/loop/randread-4k-qd32x2, null/dev/file/..., raw/get-4k-qd1x1, check/idle-cpu/dev, curve/depth/dev."`
	Curves    bool     `help:"Measure how cost grows with depth, jobs, workers, connections, servers, size and number of volumes, and nothing else."`
	Beside    []string `sep:"none" placeholder:"NAME=PATH" help:"Measure this file (itself, and by a loop device) or block device in the same rounds. What is in it is overwritten."`
	JSON      string   `name:"json" placeholder:"FILE" help:"Write the results as JSON."`
	HTML      string   `name:"html" placeholder:"FILE" help:"Write a report with plots, a page that needs nothing else."`
}

func (c *benchCmd) Help() string {
	return `It measures the store's own client, FUSE with a store that keeps nothing, and kvbfs as a whole on the image, the loop device, ext4 and XFS. Efficiency is what kvbfs reaches of the bound that follows from the first two. fio makes the load. Runs of which the host took more than 2 % are repeated. Without root, loop devices and file systems are left out.`
}

func (c *benchCmd) Run(g *globals) error {
	opt := bench.Options{
		Version: build().Version, Store: c.Store, Transport: c.Transport, Rounds: c.Rounds, Seconds: c.Seconds, Size: c.Size,
		Quick: c.Quick, Only: c.Only, Curves: c.Curves, Beside: c.Beside, JSON: c.JSON, HTML: c.HTML,
		Out: stdout, Notify: os.Stderr, Terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
	// Signals are handled there: a second one must not end it before everything is
	// taken down, which is bounded in time.
	g.release()
	err := bench.Run(g.ctx, opt)
	if errors.Is(err, bench.ErrUsage) {
		return usageError{err}
	}
	return err
}
