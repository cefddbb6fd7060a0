package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/kvbfs/kvbfs/cmd/internal/chain"
)

type upCmd struct {
	Name  string `arg:"" help:"Volume."`
	Size  string `help:"Size of a new volume; it takes space only as it fills. Default: 10G." placeholder:"SIZE"`
	FS    string `name:"fs" help:"File system: ext4, xfs or btrfs. Default: what is on the volume, ext4 on a new one." placeholder:"FS"`
	At    string `help:"Where to mount the file system; made if it is missing." placeholder:"DIR" required:""`
	Store string `help:"Store URL. Default: KVBFS_STORE, else a directory of this machine." placeholder:"URL"`
	cacheFlags
	writeBackFlags
	Rootless   bool     `help:"Work as an ordinary user: no loop device, ext4 by fuse2fs."`
	MkfsOption []string `help:"Option for mkfs, as --mkfs-option=-Lname; may be repeated." placeholder:"OPT" sep:"none"`
	Dangerous  bool     `help:"Use a store that may lose data as it is set up."`
	JSON       bool     `name:"json" help:"Print what is up as a JSON object."`
	Command    []string `arg:"" optional:"" passthrough:"" help:"With --rootless, after --: run a command in a namespace where the disk is mounted."`
}

func (c *upCmd) Help() string {
	return `What is there already is used; what an earlier run left half done or a crash left dead is put right first. Interrupted or failed, it takes back what it made. The file system is mounted nosuid,nodev.

With --rootless the disk is mounted by fuse2fs, for this user only, through fusermount3. Where that is missing (containers), or to leave nothing behind:

  kvbfs up NAME --rootless --at DIR -- COMMAND...

runs COMMAND in a user and mount namespace in which the disk is mounted on DIR, takes the disk down afterwards and ends with COMMAND's exit status. The mount is seen by COMMAND and its children only.`
}

func (c *upCmd) Run(g *globals) error {
	req, err := c.request()
	if err != nil {
		return err
	}
	if len(c.Command) > 0 {
		return c.runCommand(g, req)
	}
	run, err := chain.New(steps(), notice)
	if err != nil {
		return err
	}
	res, err := run.Up(g.ctx, req)
	if err != nil {
		return chainError(err)
	}
	if c.JSON {
		return json.NewEncoder(stdout).Encode(res)
	}
	how := ""
	if res.Already {
		how = "already "
	}
	fmt.Fprintf(stdout, "%s is %sup on %s (%s)\n", res.Name, how, res.At, mountedWith(res))
	return nil
}

// mountedWith says in short what a volume is mounted with.
func mountedWith(res chain.Result) string {
	words := []string{res.FS}
	if res.Device != "" {
		words = append(words, res.Device)
	}
	return strings.Join(append(words, res.Store), ", ")
}

// request checks the flags.
func (c *upCmd) request() (chain.Request, error) {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		c.Command = c.Command[1:]
	}
	req := chain.Request{
		Name: c.Name, Store: c.Store, At: c.At, FS: c.FS, MkfsOptions: c.MkfsOption,
		Rootless: c.Rootless, Dangerous: c.Dangerous, MountFlags: append(c.cacheFlags.flags(), c.writeBackFlags.flags()...),
	}
	if err := c.cacheFlags.check(); err != nil {
		return req, err
	}
	if err := c.writeBackFlags.check(); err != nil {
		return req, err
	}
	if c.Size != "" {
		size, err := volumeSize(c.Name, c.Size)
		if err != nil {
			return req, usageError{err}
		}
		req.Size = size
	}
	switch {
	case len(c.Command) > 0 && !c.Rootless:
		return req, usagef("a command is run with --rootless only")
	case len(c.Command) > 0 && c.JSON:
		return req, usagef("--json and a command exclude each other")
	case os.Geteuid() != 0 && !c.Rootless:
		return req, usagef("loop devices and mounts need root: run it as root, or add --rootless")
	}
	if c.Rootless && os.Geteuid() != 0 && len(c.Command) == 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			return req, usagef("fusermount3 is missing: `apt install fuse3`, or run a command inside a namespace: kvbfs up %s --rootless --at %s -- COMMAND", c.Name, c.At)
		}
	}
	return req, nil
}

// runCommand brings the volume up inside a namespace, runs the command, and takes
// the volume down.
func (c *upCmd) runCommand(g *globals, req chain.Request) error {
	if !chain.Inside() {
		if c.Store != "" {
			// By the environment: the child's arguments can be read by others.
			os.Setenv("KVBFS_STORE", c.Store)
		}
		ctx, stop := g.patient()
		defer stop()
		status, err := chain.Enter(ctx, c.childArgs())
		if err == nil && status != 0 {
			os.Exit(status)
		}
		return err
	}
	run, err := chain.New(steps(), notice)
	if err != nil {
		return err
	}
	if _, err := run.Up(g.ctx, req); err != nil {
		return chainError(err)
	}
	status, err := c.whileUp(g, req.At, func(ctx context.Context) error {
		down, err := run.Down(ctx, req.Name, "")
		tellLeft(down)
		return err
	})
	if err == nil && status != 0 {
		os.Exit(status)
	}
	return err
}

// whileUp runs the command and then down, whatever interrupts the command and however
// often. The mounts are seen in our namespace only: nobody else would take them down.
func (c *upCmd) whileUp(g *globals, at string, down func(context.Context) error) (status int, err error) {
	ctx, stop := g.patient()
	defer stop()
	status, err = chain.Command(ctx, c.Command, "KVBFS_AT="+at)
	if downErr := c.insist(down); downErr != nil {
		return 0, downErr
	}
	return status, err
}

// insist runs down. It may wait for a server that is gone for good, so who presses
// Ctrl-C again after being told leaves it half done. Not so SIGTERM: the process
// outside the namespace passes on the Ctrl-C that ended the command, a second late.
func (c *upCmd) insist(down func(context.Context) error) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	first, stop := heed(signals, time.Now, giveUp)
	defer stop()
	defer context.AfterFunc(first, func() { notice("taking %s down; Ctrl-C again leaves it half done", c.Name) })()
	return down(ctx)
}

// childArgs are the arguments of the same run inside the namespace.
func (c *upCmd) childArgs() []string {
	args := []string{"up", "--rootless", "--at=" + c.At}
	for flag, value := range map[string]string{"--size=": c.Size, "--fs=": c.FS} {
		if value != "" {
			args = append(args, flag+value)
		}
	}
	for _, o := range c.MkfsOption {
		args = append(args, "--mkfs-option="+o)
	}
	args = append(args, textsOf(c.cacheFlags.flags())...)
	args = append(args, textsOf(c.writeBackFlags.flags())...)
	if c.Dangerous {
		args = append(args, "--dangerous")
	}
	return append(append(args, c.Name, "--"), c.Command...)
}

// steps tells each step on a terminal, and nothing elsewhere.
func steps() func(string, ...any) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return nil
	}
	return func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
}

// notice tells what the user should know in any case.
func notice(format string, args ...any) { fmt.Fprintf(os.Stderr, "kvbfs: "+format+"\n", args...) }

func tellLeft(res chain.Result) {
	for _, l := range res.Left {
		notice("still mounted: %s", l)
	}
}
