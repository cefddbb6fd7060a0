// Package bench measures, in one run and on the machine it is on, the limits of
// each layer and kvbfs as a whole.
//
// # The nouns
//
//   - A target is something that fio can be pointed at: an image, a loop device on
//     it, a file in a file system on that; of kvbfs over a store, of kvbfs over the
//     store that keeps nothing, or of a peer.
//   - A measurement is a work on a target, or of the raw store's client; it becomes
//     a row of the report. A round does every measurement once.
//   - Steal is what the host takes of this machine's time. A run that suffered from
//     it is dropped and repeated, a few times.
//   - Checks are single figures with a limit; curves are one work along one axis.
//
// # Data flow
//
// Everything that is measured is a child process: daemons, servers, fio. This
// process makes the mounts' volumes, attaches and formats, and is itself the load
// only for the raw store's client. It serves no mount. What comes into being lives
// in a scratch place, whose sweep leaves nothing; on a store that is not ours, the
// volumes and blocks that were made are removed.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/losetup"
)

// Transports, as `kvbfs mount` names them.
const (
	dev   = "dev"
	uring = "uring"
	auto  = "auto" // the one that a mount takes
	both  = "both" // one after the other
)

// Options of Run.
type Options struct {
	Exe       string // the kvbfs binary; empty: this process's own
	Version   string
	Store     string // URL; empty: private memcached servers
	Transport string // dev, uring, auto or both
	Rounds    int
	Seconds   int    // of each run
	Size      string // of each volume
	Quick     bool   // few works, one round, one second
	Only      string // regular expression of names of rows
	Curves    bool   // measure the curves and nothing else
	Beside    []string
	Out       io.Writer
	JSON      string // file; empty: none
	HTML      string // file; empty: none
	Notify    io.Writer
	Terminal  bool // Notify is one

	size int64
	only *regexp.Regexp
}

// bench is one run.
type bench struct {
	opt    Options
	place  *scratch.Place
	show   *progress
	report *result.Report

	cpus       int
	transports []string
	places     []string
	peers      []peer
	url        string // of the store
	foreign    bool   // the store is not ours
	raw        bool   // the store has a raw client
	// redisBenchmark: redis-benchmark can measure the store.
	redisBenchmark bool
	made           []madeVolume
	loops          []losetup.Device // attached outside the scratch place
	servers        []*server
	one            *mount // that most curves share
}

// peer is what was named with --beside.
type peer struct {
	name, path string
	device     bool
}

// interrupted is how an interrupted run ends; it counts as context.Canceled.
type interrupted struct{}

func (interrupted) Error() string        { return "interrupted; everything was cleaned up" }
func (interrupted) Is(target error) bool { return target == context.Canceled }

// ErrUsage marks options that make no sense.
var ErrUsage = errors.New("bad usage")

// usageError is a message that stands alone and is an ErrUsage.
type usageError struct{ msg string }

func (e *usageError) Error() string        { return e.msg }
func (e *usageError) Is(target error) bool { return target == ErrUsage }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// Run measures and reports. Whatever happens, nothing is left behind; the error
// says what failed with what.
func Run(ctx context.Context, opt Options) (err error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	b := &bench{opt: opt, cpus: runtime.NumCPU(), show: &progress{out: opt.Notify, terminal: opt.Terminal}}
	if err := b.check(); err != nil {
		return err
	}
	if err := b.examine(ctx); err != nil {
		return err
	}
	p, err := b.plan()
	if err != nil {
		return err
	}
	if b.place, err = scratch.New(b.opt.Exe, "bench"); err != nil {
		return err
	}
	defer func() {
		b.show.step("cleaning up")
		cerr := b.clean()
		b.show.clear()
		switch {
		case ctx.Err() != nil && cerr == nil:
			err = interrupted{}
		case err == nil:
			err = cerr
		case cerr != nil:
			err = fmt.Errorf("%w; and cleaning up: %w", err, cerr)
		}
	}()
	if err := b.measure(ctx, p); err != nil {
		return err
	}
	return b.publish()
}

// check completes the options.
func (b *bench) check() error {
	opt := &b.opt
	if opt.Quick {
		opt.Rounds, opt.Seconds = 1, 1
		if opt.Size == "" {
			opt.Size = "64M"
		}
	}
	if opt.Size == "" {
		opt.Size = "256M"
	}
	var err error
	if opt.size, err = stack.ParseSize(opt.Size); err != nil {
		return fmt.Errorf("--size: %w", err)
	}
	switch {
	case opt.size < 32<<20 || opt.size%(1<<20) != 0:
		return usagef("--size %s: at least 32M, in whole MiB", opt.Size)
	case opt.Rounds < 1 || opt.Rounds > 99:
		return usagef("--rounds must be 1 to 99")
	case opt.Seconds < 1 || opt.Seconds > 600:
		return usagef("--seconds must be 1 to 600; fio knows whole seconds only")
	}
	if opt.Only != "" {
		if opt.only, err = regexp.Compile(opt.Only); err != nil {
			return usagef("--only: %v", err)
		}
	}
	for flag, path := range map[string]string{"--json": opt.JSON, "--html": opt.HTML} {
		// Not after an hour of measuring.
		if fi, err := os.Stat(filepath.Dir(path)); path != "" && (err != nil || !fi.IsDir()) {
			return usagef("%s %s: %s is no directory", flag, path, filepath.Dir(path))
		}
	}
	for _, spec := range opt.Beside {
		name, path, ok := strings.Cut(spec, "=")
		if !ok || name == "" || path == "" || slices.Contains(result.Subjects, name) {
			return usagef("--beside %q: write NAME=PATH, with a name of its own; what is in PATH is overwritten", spec)
		}
		b.peers = append(b.peers, peer{name: name, path: path})
	}
	if opt.Exe == "" {
		if opt.Exe, err = os.Executable(); err != nil {
			return err
		}
	}
	return nil
}

// skip notes what is left out, and says so.
func (b *bench) skip(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.report.Skipped = append(b.report.Skipped, text)
	b.show.note("skipped: %s", text)
}

// examine finds out what this machine can do.
func (b *bench) examine(ctx context.Context) error {
	// An ordinary user's PATH often lacks the directories where mkfs lives.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	b.report = &result.Report{Made: time.Now().UTC().Truncate(time.Second), Version: b.opt.Version, Machine: machine(ctx),
		Settings: result.Settings{Rounds: b.opt.Rounds, Seconds: b.opt.Seconds, Size: b.opt.size, Quick: b.opt.Quick},
		Rows:     []result.Row{}, Checks: []result.Check{}, Curves: []result.Curve{}, Skipped: []string{}}
	version, err := fioVersion(ctx)
	if err != nil {
		return err
	}
	b.report.Machine.Fio = version
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return errors.New("there is no /dev/fuse here: in a container start it with --device /dev/fuse; else load the module: modprobe fuse")
	}
	for i := range b.peers {
		fi, err := os.Stat(b.peers[i].path)
		if err != nil {
			return fmt.Errorf("--beside %s: %w", b.peers[i].name, err)
		}
		b.peers[i].device = fi.Mode()&os.ModeDevice != 0
		if !b.peers[i].device && fi.Size() < b.opt.size {
			return usagef("--beside %s: %s has %d bytes, less than --size %s", b.peers[i].name, b.peers[i].path, fi.Size(), b.opt.Size)
		}
	}
	b.chooseTransports()
	b.choosePlaces()
	b.foreign = b.opt.Store != ""
	b.raw = !b.foreign || hasServers(b.opt.Store)
	if !b.raw {
		b.skip("the raw store and the bounds that follow from it: only memcached and Redis have a raw client here")
	}
	if b.foreign && isRedis(b.opt.Store) {
		if why := redisBenchmarkFits(b.opt.Store); why != "" {
			b.skip("redis-benchmark: %s; the limit of the store is what kvbfs's client reaches alone", why)
		} else {
			b.redisBenchmark = true
		}
	}
	return nil
}

// chooseTransports takes what was asked for; of both what there is, and for auto
// what a mount would take.
func (b *bench) chooseTransports() {
	if b.opt.Transport == dev || b.opt.Transport == uring {
		b.transports = []string{b.opt.Transport}
		return
	}
	b.transports = []string{dev}
	switch _, err := os.Stat("/sys/module/fuse/parameters/enable_uring"); {
	case err != nil:
		b.skip("io_uring: this kernel has no FUSE over io_uring (Linux 6.14)")
	case !scratch.RootHere():
		b.skip("io_uring: only root may let the kernel offer it")
	case b.opt.Transport == auto:
		b.transports = []string{uring}
	default:
		b.transports = []string{dev, uring}
	}
}

// choosePlaces looks for what needs root and tools.
func (b *bench) choosePlaces() {
	b.places = []string{result.File}
	if _, err := os.Stat("/dev/loop-control"); !scratch.RootHere() || err != nil {
		b.skip("loop, ext4 and XFS: loop devices need root and /dev/loop-control")
		return
	}
	b.places = append(b.places, result.Loop)
	if b.opt.Quick {
		return
	}
	for _, fs := range []string{result.Ext4, result.XFS} {
		if _, err := exec.LookPath("mkfs." + fs); err != nil {
			b.skip("%s: mkfs.%s is not installed", fs, fs)
			continue
		}
		b.places = append(b.places, fs)
	}
}

// clean takes everything down. It is bounded in time.
func (b *bench) clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, s := range b.servers {
		s.resume()
	}
	err := b.detachPeers(ctx)
	b.place.Release(ctx)
	err = errors.Join(err, b.removeVolumes(ctx))
	_, serr := b.place.Sweep()
	return errors.Join(err, serr)
}
