// Package demo shows all of kvbfs in a scratch place within seconds, and takes
// everything down again.
//
// # The nouns
//
//   - The scratch is a private directory with private state, runtime directory
//     and servers. Its sweep goes by what the kernel lists (mounts, loop devices,
//     processes), so it is complete whenever the demo is interrupted.
//   - A column is one store that is shown: the embedded one, and a private
//     memcached where it is installed.
//   - A way is how a file system gets onto a volume: a loop device, fuse2fs, or
//     mke2fs -d and debugfs. The best one that works here is taken.
//   - A row is one step, done for each column in turn and printed when it is done.
//
// # Data flow
//
// Everything is done by child processes of the same kvbfs binary, as a user
// would type them; the daemons are their children and never this process. So
// this process may read and write the mounts, and an interrupt from the terminal
// reaches it alone: children live in process groups of their own.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/scratch"
)

// Options of Run.
type Options struct {
	Exe    string // the kvbfs binary; empty: this process's own
	Size   string // of the volume that takes the tree, as `volume create` reads it
	Only   string // "file" or "memcached": one column; empty: what there is
	Keep   bool   // leave mounts and servers, and say how to end them
	JSON   bool   // print one JSON object and nothing else
	Out    io.Writer
	Notify io.Writer // progress, if it is a terminal; nil: none
}

// demo is one run.
type demo struct {
	opt     Options
	s       *scratch.Place
	out     *report
	tree    tree
	way     way
	columns []*column
}

// column is one store on show.
type column struct {
	title  string
	url    string
	dir    string  // mount point
	server *server // nil: the embedded store
}

// step is a row: what it shows and how.
type step struct {
	key, label string
	run        func(ctx context.Context, c *column) (cell, error)
}

// interrupted is how an interrupted demo ends; it counts as context.Canceled.
type interrupted struct{}

func (interrupted) Error() string        { return "interrupted; everything was cleaned up" }
func (interrupted) Is(target error) bool { return target == context.Canceled }

// Run runs the demo. The error says which step failed with what; everything is
// taken down whatever happens, except with Keep after success.
func Run(ctx context.Context, opt Options) (err error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := ready(&opt); err != nil {
		return err
	}
	begin := time.Now()
	s, err := scratch.New(opt.Exe, "demo")
	if err != nil {
		return err
	}
	d := &demo{opt: opt, s: s, out: newReport(opt)}
	defer func() {
		if err == nil && opt.Keep {
			d.out.kept(instructions(s, d.columns))
			return
		}
		d.out.progress("cleaning up")
		swept, serr := s.Sweep()
		if err == nil {
			err = serr
		} else if serr != nil {
			err = fmt.Errorf("%w; and cleaning up: %w", err, serr)
		}
		if err == nil {
			d.out.done(swept, time.Since(begin))
		} else {
			d.out.broken(swept)
		}
		if ctx.Err() != nil && serr == nil {
			err = interrupted{}
		}
	}()
	return d.show(ctx)
}

// ready checks what the demo cannot do without.
func ready(opt *Options) error {
	if opt.Exe == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		opt.Exe = exe
	}
	if opt.Size == "" {
		opt.Size = "2G"
	}
	// An ordinary user's PATH often lacks the directories where mke2fs lives.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return errors.New("there is no /dev/fuse here: in a container start it with --device /dev/fuse; " +
			"else load the module: modprobe fuse")
	}
	for _, tool := range []string{"mke2fs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: install e2fsprogs", tool)
		}
	}
	if opt.Only == "memcached" {
		if _, err := exec.LookPath("memcached"); err != nil {
			return errors.New("memcached is not installed")
		}
	}
	return nil
}

// show sets the scene and goes through the rows.
func (d *demo) show(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	var err error
	if d.way, err = d.chooseWay(ctx); err != nil {
		return err
	}
	d.out.progress("choosing a tree to copy")
	if d.tree, err = stage(ctx, d.s.Path("tree"), d.way.files()); err != nil {
		return fmt.Errorf("choosing a tree to copy: %w", err)
	}
	d.out.head(d)
	for _, st := range d.steps() {
		cells := make([]cell, len(d.columns))
		for i, c := range d.columns {
			d.out.progress(c.title + ": " + st.label)
			if cells[i], err = st.run(ctx, c); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return fmt.Errorf("%s, %s: %w", c.title, st.label, err)
			}
		}
		d.out.row(st, cells)
	}
	return nil
}

// open starts the stores, mounts them and makes the volumes.
func (d *demo) open(ctx context.Context) error {
	if d.opt.Only != "memcached" {
		d.columns = append(d.columns, &column{title: "embedded", url: "file://" + d.s.Path("store"), dir: d.s.Path("embedded")})
	}
	if _, err := exec.LookPath("memcached"); err == nil && d.opt.Only != "file" {
		d.out.progress("starting a private memcached")
		srv, err := startMemcached(ctx, d.s)
		if err != nil {
			return err
		}
		d.columns = append(d.columns, &column{title: "memcached", url: srv.url(), dir: d.s.Path("memcached"), server: srv})
	}
	for _, c := range d.columns {
		d.out.progress(c.title + ": volumes and mount")
		if err := os.Mkdir(c.dir, 0o700); err != nil {
			return err
		}
		for _, v := range []struct{ name, size string }{{treeVolume, d.opt.Size}, {benchVolume, benchSize}} {
			if _, err := d.s.Kvbfs(ctx, "volume", "create", v.name, "--size", v.size, "--store", c.url); err != nil {
				return err
			}
		}
		if err := d.s.Mount(ctx, c.dir, c.url); err != nil {
			return err
		}
	}
	return nil
}

// Volumes of each column: one takes the file system, the other is measured,
// written to during the crash and robbed of a key.
const (
	treeVolume  = "tree"
	benchVolume = "bench"
	benchSize   = "128M"
	benchBytes  = 128 << 20
)

func (d *demo) steps() []step {
	steps := []step{
		{"copy", "copied onto ext4, synced, unmounted", d.copyTree},
		{"checksums", "mounted again: sha256 of every file", d.checkTree},
		{"fsck", "e2fsck", d.fsck},
	}
	m := &meter{d: d}
	steps = append(steps,
		step{"write", "1 MiB writes", m.fill},
		step{"random_read", "4 KiB random reads, 32 at a time", m.reads},
		step{"random_write", "4 KiB random writes, 32 at a time", m.writes},
		step{"latency", "4 KiB read, one at a time", m.latency},
		step{"crash", "daemon killed in mid-write", d.crash})
	for _, c := range d.columns {
		if c.server != nil {
			return append(steps, step{"loss", "one key deleted on the server", d.loss})
		}
	}
	return steps
}

// instructions say how to go on with what --keep leaves, and how to end it.
func instructions(s *scratch.Place, columns []*column) []string {
	lines := []string{
		"export KVBFS_STATE_DIR=" + s.Path("state") + " KVBFS_RUNTIME_DIR=" + s.Path("run"),
		s.Exe + " status",
	}
	for _, c := range columns {
		lines = append(lines, s.Exe+" umount "+c.dir)
		if c.server != nil {
			lines = append(lines, fmt.Sprintf("kill %d", c.server.pid()))
		}
	}
	return append(lines, "rm -r "+s.Dir)
}
