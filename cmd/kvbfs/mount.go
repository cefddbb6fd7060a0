package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

type mountCmd struct {
	Dir         string `arg:"" help:"Empty directory to mount on, or /dev/fd/N of a FUSE connection that is mounted already (with -f)."`
	Store       string `help:"Store URL. Default: KVBFS_STORE, else a directory of this machine." placeholder:"URL"`
	Foreground  bool   `short:"f" help:"Stay in the foreground and log to standard error."`
	Workers     *int   `help:"Batches served in parallel. Default: one per CPU that kvbfs may use." placeholder:"N"`
	Connections int    `help:"Connections per worker and server." default:"1" placeholder:"N"`
	CacheSize   string `help:"Memory for blocks that were read, as 512M; 0: none. Stores of this machine need none." default:"0" placeholder:"SIZE"`
	ReadAhead   string `help:"How far to read ahead of who reads in sequence, into the cache; 0: not at all." default:"4M" placeholder:"SIZE"`
	writeBackFlags
	Only         []string      `help:"Serve these volumes only." placeholder:"VOL"`
	AllowOther   bool          `help:"Let other users in (as root; else user_allow_other in /etc/fuse.conf is needed)."`
	AllowRemove  bool          `help:"Let rm in the mount remove volumes."`
	IOTimeout    time.Duration `name:"io-timeout" help:"Give an I/O error when a server is silent for so long, as 30s. Default: wait for ever." placeholder:"D"`
	ReadOnly     bool          `help:"Serve for reading only."`
	Stale        bool          `help:"With --read-only: read without a lease, also what others write to. Shows what was flushed when an image was opened; what changes later is seen in part, or is an I/O error."`
	Transport    string        `help:"How requests come from the kernel: uring (FUSE over io_uring), dev (/dev/fuse), or auto: uring where the kernel and your rights allow it, else dev." enum:"auto,uring,dev" default:"auto" env:"KVBFS_TRANSPORT"`
	MLock        bool          `name:"mlock" help:"Keep the daemon's memory from being swapped out (needs CAP_IPC_LOCK)."`
	WaitReplicas int           `name:"wait-replicas" help:"Redis: a flush waits until N replicas have what it covers." placeholder:"N"`
	WaitAOF      bool          `name:"wait-aof" help:"Redis 7.2: a flush waits until the append-only file is on disk (of the replicas too, with --wait-replicas)."`
	Dangerous    bool          `help:"Use a store that may lose data as it is set up."`
	Debug        bool          `help:"Log every request (with -f)."`
	ReadyFD      int           `hidden:"" help:"Descriptor on which the start is reported."`
}

func (c *mountCmd) Help() string {
	return "Each volume is a sparse file; new ones are made by `truncate -s 10G DIR/NAME` or `kvbfs volume create`. The command returns when the mount serves. Stores: " +
		strings.Join(stack.Schemes(), "  ")
}

// Run mounts, in the foreground or by a child in the background.
func (c *mountCmd) Run(g *globals) error {
	var reporter *daemon.Reporter
	if c.ReadyFD > 0 {
		reporter = daemon.NewReporter(c.ReadyFD)
	}
	err := c.run(g, reporter)
	if err != nil && reporter != nil {
		reporter.Failed(err, exitStatus(err))
	}
	return err
}

func (c *mountCmd) run(g *globals, reporter *daemon.Reporter) error {
	if err := c.check(); err != nil {
		return err
	}
	if reporter == nil && !strings.HasPrefix(c.Dir, "/dev/fd/") {
		// The parent did this already, and a child must not look twice: what it finds
		// then may be its own.
		var err error
		if c.Dir, err = mountPoint(g.ctx, c.Dir); err != nil {
			return err
		}
	}
	if !c.Foreground {
		banner, err := daemon.Start(g.ctx, c.Dir, c.childArgs(), func(text string) { fmt.Fprintln(os.Stderr, "kvbfs:", text) })
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, banner)
		return nil
	}
	g.release() // from here on signals are the daemon's
	cfg := c.config()
	if reporter != nil {
		cfg.LogPath = logOf(os.Stderr)
		cfg.Ready = reporter.Ready
		log := cfg.Stack.Log
		var once sync.Mutex // the reporter is closed by Ready, and logs come from many
		ready := false
		cfg.Ready = func(banner string) {
			once.Lock()
			defer once.Unlock()
			ready = true
			reporter.Ready(banner)
		}
		cfg.Stack.Log = func(format string, args ...any) {
			log(format, args...)
			once.Lock()
			defer once.Unlock()
			if !ready {
				reporter.Notice(fmt.Sprintf(format, args...))
			}
		}
	}
	return daemon.Serve(g.ctx, cfg)
}

// check finds what is wrong with the flags.
func (c *mountCmd) check() error {
	switch {
	case c.Workers != nil && (*c.Workers < 1 || *c.Workers > maxWorkers):
		return usagef("--workers must be 1 to %d", maxWorkers)
	case c.Connections < 1 || c.Connections > maxConnections:
		return usagef("--connections must be 1 to %d", maxConnections)
	case c.WaitReplicas < 0 || c.WaitReplicas > maxReplicas:
		return usagef("--wait-replicas must be 0 to %d", maxReplicas)
	case c.IOTimeout < 0:
		return usagef("--io-timeout must not be negative; leave it out to wait for ever")
	case c.Stale && !c.ReadOnly:
		return usagef("--stale needs --read-only: who writes needs the lease")
	case c.Debug && !c.Foreground:
		return usagef("--debug needs -f")
	case strings.HasPrefix(c.Dir, "/dev/fd/") && !c.Foreground:
		return usagef("a connection that is mounted already (%s) is served in the foreground only: add -f", c.Dir)
	}
	if err := errors.Join(c.checkCache(), c.writeBackFlags.check()); err != nil {
		return err
	}
	for _, name := range c.Only {
		if err := pool.CheckName(name); err != nil {
			return err
		}
	}
	url, err := stack.Canonical(c.Store)
	if err == nil && (c.WaitReplicas > 0 || c.WaitAOF) && !strings.HasPrefix(url, "redis") {
		return usagef("--wait-replicas and --wait-aof are for Redis stores; this one is %s", url)
	}
	return err
}

// checkCache finds what is wrong with the sizes of the cache.
func (c *mountCmd) checkCache() error {
	return cacheFlags{c.CacheSize, c.ReadAhead}.check()
}

const (
	// maxWorkers and maxConnections are far beyond what helps; each costs a thread
	// or a socket per server.
	maxWorkers     = 256
	maxConnections = 16
	maxReplicas    = 16
)

// childArgs are the arguments of the same mount in the foreground. A store from
// the environment stays there: arguments can be read by others.
func (c *mountCmd) childArgs() []string {
	args := []string{"mount", "-f", "--ready-fd=" + strconv.Itoa(daemon.ReadyFD), "--transport=" + c.Transport, "--connections=" + strconv.Itoa(c.Connections)}
	flag := func(on bool, text string) {
		if on {
			args = append(args, text)
		}
	}
	flag(c.Store != "", "--store="+c.Store)
	flag(c.Workers != nil, "--workers="+strconv.Itoa(c.workers()))
	flag(len(c.Only) > 0, "--only="+strings.Join(c.Only, ","))
	args = append(args, textsOf(cacheFlags{c.CacheSize, c.ReadAhead}.flags())...)
	args = append(args, textsOf(c.writeBackFlags.flags())...)
	flag(c.AllowOther, "--allow-other")
	flag(c.AllowRemove, "--allow-remove")
	flag(c.IOTimeout > 0, "--io-timeout="+c.IOTimeout.String())
	flag(c.ReadOnly, "--read-only")
	flag(c.Stale, "--stale")
	flag(c.WaitReplicas > 0, "--wait-replicas="+strconv.Itoa(c.WaitReplicas))
	flag(c.WaitAOF, "--wait-aof")
	flag(c.Dangerous, "--dangerous")
	flag(c.MLock, "--mlock")
	return append(args, "--", c.Dir)
}

// workers is 0 for the default.
func (c *mountCmd) workers() int {
	if c.Workers == nil {
		return 0
	}
	return *c.Workers
}

func (c *mountCmd) config() daemon.Config {
	source := "--store"
	if c.Store == "" {
		_, source = stack.DefaultURL()
	}
	return daemon.Config{
		Stack: stack.Config{URL: c.Store, Connections: c.Connections, CacheSize: sizeOf(c.CacheSize), ReadAhead: sizeOf(c.ReadAhead), WriteBack: c.writeBackFlags.config(),
			WaitReplicas: c.WaitReplicas, WaitAOF: c.WaitAOF, Dangerous: c.Dangerous, Stale: c.Stale, Log: logger(os.Stderr)},
		URLSource: source,
		Dir:       c.Dir,
		Version:   build().Version,
		MLock:     c.MLock,
		FS: fusefs.Options{
			Only: c.Only, AllowOther: c.AllowOther, AllowRemove: c.AllowRemove, ReadOnly: c.ReadOnly,
			Workers: c.workers(), Timeout: c.IOTimeout, Debug: c.Debug,
			Transport: fusefs.Transport(c.Transport),
		},
		Ready: func(banner string) { fmt.Fprintln(os.Stderr, banner) },
	}
}

// logger returns a log function that writes one line with its time per event.
func logger(w io.Writer) func(format string, args ...any) {
	var mu sync.Mutex // keeps lines whole
	return func(format string, args ...any) {
		line := time.Now().Format("2006-01-02 15:04:05.000 ") + strings.TrimRight(fmt.Sprintf(format, args...), "\n") + "\n"
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.WriteString(w, line)
	}
}

// logOf returns the path of the file that f writes to, empty if it is none.
func logOf(f *os.File) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || !filepath.IsAbs(path) || !strings.HasSuffix(path, ".log") {
		return ""
	}
	return path
}

// mountPoint checks a directory that is to be mounted on, and returns its
// canonical path.
func mountPoint(ctx context.Context, dir string) (string, error) {
	if dir == "" {
		return "", usagef("the directory to mount on is empty: name one") // else it were the current one
	}
	abs, err := daemon.Canonical(dir)
	if err != nil {
		return "", err
	}
	// First the lists, which do not touch what may be mounted there.
	if m, ok := daemon.FindDir(abs); ok {
		if _, mounted := daemon.FUSEMount(abs); !mounted {
			// Unmounted a moment ago: its daemon stores what is left.
			if daemon.WaitGone(ctx, m, leaveTime) {
				return mountPoint(ctx, dir)
			}
			return "", fmt.Errorf("%s is unmounted, but process %d still stores what is left to %s: try again later", abs, m.PID, m.Store)
		}
		return "", fmt.Errorf("%s is mounted already: process %d serves %s there", abs, m.PID, m.Store)
	}
	if m, ok := daemon.MountAt(abs); ok {
		if strings.HasPrefix(m.Type, "fuse.kvbfs") || m.Type == "fuse" {
			if m.Dead() {
				return "", fmt.Errorf("%s still has the mount of a daemon that is gone: `kvbfs umount %s` clears it", abs, abs)
			}
		}
		return "", fmt.Errorf("%s is a mount point already (%s, type %s): choose another directory", abs, m.Source, m.Type)
	}
	fi, err := os.Lstat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("%s does not exist: `mkdir %s` makes it", abs, abs)
	case err != nil:
		return "", err
	case fi.Mode()&os.ModeSymlink != 0:
		return "", fmt.Errorf("%s is a symbolic link: name the directory that it points to", abs)
	case !fi.IsDir():
		return "", fmt.Errorf("%s is not a directory", abs)
	}
	// Who mistypes a directory would hide what others need.
	if inside, err := os.ReadDir(abs); err == nil && len(inside) > 0 {
		return "", fmt.Errorf("%s is not empty, the mount would hide what is in it: choose an empty directory", abs)
	}
	return abs, nil // who may have a hand in its parents is fusefs's to check
}
