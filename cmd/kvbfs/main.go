// Command kvbfs exposes volumes of a key-value store as files and as disks.
//
// One file per verb; the grammar is the struct below.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// cli is the grammar. Each verb is a type in its own file with a
// Run(*globals) error method.
type cli struct {
	Mount   mountCmd   `cmd:"" help:"Serve the volumes of a store as files in a directory."`
	Umount  umountCmd  `cmd:"" help:"Unmount, after everything is stored."`
	Volume  volumeCmd  `cmd:"" help:"Create, list, resize, remove and examine volumes."`
	Scrub   scrubCmd   `cmd:"" help:"Check that every block of a volume can be read, and free what nobody needs."`
	Pool    poolCmd    `cmd:"" help:"Examine a pool, or forget one whose data is lost."`
	Attach  attachCmd  `cmd:"" help:"Attach a volume to a loop device."`
	Detach  detachCmd  `cmd:"" help:"Detach a loop device and wait until it is gone."`
	Up      upCmd      `cmd:"" help:"Create, mount, attach, mkfs and mount a volume in one go."`
	Down    downCmd    `cmd:"" help:"Undo up, in order."`
	Demo    demoCmd    `cmd:"" help:"Show all of it in a scratch place, and clean up."`
	Bench   benchCmd   `cmd:"" help:"Measure each layer's own limit and the whole, side by side."`
	Status  statusCmd  `cmd:"" help:"Who is mounted where, and how it is doing."`
	Abort   abortCmd   `cmd:"" help:"Give up waiting: fail what a volume, or a mount, is waiting for."`
	Lock    lockCmd    `cmd:"" help:"Show who may write to the volumes, or take that right away."`
	Doctor  doctorCmd  `cmd:"" help:"Look for what is missing or dangerous, with the fix for each."`
	Unmount unmountCmd `cmd:"" hidden:"" name:"unmount-child"`
	Version versionCmd `cmd:"" help:"Print the version."`
}

const description = `Block devices on a key-value store.

The store is --store, else the environment variable KVBFS_STORE, else a directory of this machine. Sizes are written 10G, 512M, 1.5T or in bytes. The exit status is 0 for success, 1 for failure, 2 for bad usage.`

// globals is what every verb gets.
type globals struct {
	ctx context.Context // ends at the first SIGINT or SIGTERM
	// release stops the handling of signals here, for a verb that handles them
	// itself. ctx does not end then.
	release func()
}

// patient is for a verb that must clean up after a child: the context ends at the
// first signal, and a second one ends nothing. It lasts until stop is called.
func (g *globals) patient() (ctx context.Context, stop func()) {
	ctx, stop = signal.NotifyContext(g.ctx, syscall.SIGINT, syscall.SIGTERM)
	g.release()
	return ctx, stop
}

// usageError is bad input: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usagef returns an error that ends kvbfs with status 2.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Exit statuses beside 0.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 130 // 128 + SIGINT, as shells have it
)

func main() { os.Exit(stdout.status(run(os.Args[1:]))) }

func run(args []string) (status int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "kvbfs: internal error: %v; this is a bug, please report it with the command that you ran\n", p)
			if os.Getenv("KVBFS_DEBUG") != "" {
				os.Stderr.Write(debug.Stack())
			}
			status = exitFailure
		}
	}()
	ctx, release := interruptible()
	defer release()
	var c cli
	parser := kong.Must(&c, kong.Name("kvbfs"), kong.Description(description),
		kong.Writers(stdout, os.Stderr), kong.Exit(func(code int) { os.Exit(stdout.status(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	k, err := parser.Parse(asFlags(args))
	if err != nil {
		fmt.Fprintf(os.Stderr, "kvbfs: %v (see %s)\n", err, helpFor(err))
		return exitUsage
	}
	if err := asInterrupted(ctx, k.Run(&globals{ctx: ctx, release: release})); err != nil {
		switch {
		case errors.Is(err, errSaid):
		case err.Error() == context.Canceled.Error():
			fmt.Fprintln(os.Stderr, "kvbfs: interrupted")
		default:
			fmt.Fprintln(os.Stderr, "kvbfs:", err)
		}
		return exitStatus(err)
	}
	return 0
}

// asFlags takes what other programs have as verbs or flags for what it is here.
func asFlags(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(args[1:], "--help")
	case len(args) == 1 && args[0] == "--version":
		return []string{"version"}
	}
	return args
}

// helpFor names the command that explains what was used wrongly.
func helpFor(err error) string {
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil {
		if n := p.Context.Selected(); n != nil {
			return fmt.Sprintf("`kvbfs %s --help`", strings.TrimSpace(n.Path()))
		}
	}
	return "`kvbfs --help`"
}

// errSaid is a failure that the verb has told already.
var errSaid = errors.New("")

// exitStatus tells bad input from failure.
func exitStatus(err error) int {
	var u usageError
	var s *daemon.StartError
	switch {
	case errors.As(err, &s):
		return s.Status
	case errors.As(err, &u), errors.Is(err, stack.ErrInput), errors.Is(err, pool.ErrBadName),
		errors.Is(err, pool.ErrBadSize), errors.Is(err, volume.ErrShrink), errors.Is(err, volume.ErrOutside):
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailure
}

// interrupted is a failure that came of a signal; it is a context.Canceled.
type interrupted struct{ error }

func (i interrupted) Unwrap() error      { return i.error }
func (interrupted) Is(target error) bool { return target == context.Canceled }

// asInterrupted marks what failed after ctx had ended, whatever it says of itself.
// A terminal signals children too: one that died of it may be noticed before the
// signal to this process is.
func asInterrupted(ctx context.Context, err error) error {
	var child *exec.ExitError
	if errors.As(err, &child) {
		if s, ok := child.Sys().(syscall.WaitStatus); ok && s.Signaled() && (s.Signal() == syscall.SIGINT || s.Signal() == syscall.SIGTERM) {
			select {
			case <-ctx.Done():
				return context.Canceled
			case <-time.After(sameWish):
			}
		}
	}
	if err == nil || ctx.Err() == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, kvstore.ErrAborted) {
		return context.Canceled // which request it was is of no interest
	}
	return interrupted{err}
}

// sameWish is how soon after a signal another one is still the same wish: what
// signals a process and its whole group (timeout, supervisors) sends two.
const sameWish = 500 * time.Millisecond

// interruptible returns a context that ends at the first SIGINT or SIGTERM; a
// second wish ends the process at once.
func interruptible() (context.Context, func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, stop := heed(signals, time.Now, func() {
		fmt.Fprintln(os.Stderr, "kvbfs: interrupted again: ended before everything was cleaned up")
		os.Exit(exitInterrupted)
	})
	return ctx, func() {
		signal.Stop(signals)
		stop()
	}
}

// heed returns a context that ends with the first signal, and calls again for one
// that is another wish. It looks until stop is called.
func heed(signals <-chan os.Signal, now func() time.Time, again func()) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	quit := make(chan struct{})
	go func() {
		var first time.Time
		for {
			select {
			case <-signals:
				if ctx.Err() == nil {
					first = now()
					cancel()
				} else if now().Sub(first) > sameWish {
					again()
				}
			case <-quit:
				return
			}
		}
	}()
	return ctx, sync.OnceFunc(func() { close(quit) })
}
