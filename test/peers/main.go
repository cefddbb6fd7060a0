// Command peers sets kvbfs beside what one would use instead:
//
//	go run ./test/peers --kvbfs bin/kvbfs [--size 512M] -- [flags of kvbfs bench]
//
// # Data flow
//
// It starts each peer that it finds here, as a child, on a scratch place in memory,
// and lets `kvbfs bench --beside NAME=FILE` measure all of them in the same rounds,
// on the file and through a loop device. It serves nothing itself. Afterwards, also
// after an interrupt, everything is ended, unmounted and removed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	kvbfs := flag.String("kvbfs", "bin/kvbfs", "the binary to measure")
	size := flag.String("size", "512M", "size of each disk, in M or G")
	only := flag.String("only", "", "rows to measure; default: those that have a peer")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *kvbfs, *size, *only, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// rig is the scratch place and what runs in it.
type rig struct {
	dir   string // a tmpfs of its own
	bytes int64
	stops []func() // in the order of the starts
}

// run sets up, measures, takes down.
func run(ctx context.Context, kvbfs, size, only string, more []string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("mounts and loop devices need root")
	}
	bytes, err := parse(size)
	if err != nil {
		return err
	}
	if kvbfs, err = filepath.Abs(kvbfs); err != nil {
		return err
	}
	r, err := newRig(bytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	args := []string{"bench", "--size", size}
	for _, p := range peers {
		path, err := p.start(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "peers: skipped %s: %v\n", p.name, err)
			continue
		}
		args = append(args, "--beside", p.name+"="+path)
	}
	if only == "" {
		only = fmt.Sprintf(`^raw/|^gomemcache/|/(file|loop)/(rand(read|write)-4k-(qd1x1|qd32x%d)|(read|write)-128k-)`, runtime.NumCPU())
	}
	cmd := exec.CommandContext(ctx, kvbfs, append(append(args, "--only", only), more...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// It cleans up when it is told to end, within bounds of its own.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 3 * time.Minute
	return cmd.Run()
}

// parse reads a size in M or G.
func parse(size string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimRight(size, "MG"), 10, 64)
	shift := map[bool]int{false: 20, true: 30}[strings.HasSuffix(size, "G")]
	if err != nil || n < 1 || !strings.HasSuffix(size, "M") && !strings.HasSuffix(size, "G") {
		return 0, fmt.Errorf("size %q: write 512M or 1G", size)
	}
	return n << shift, nil
}

// newRig mounts a tmpfs for everything.
func newRig(bytes int64) (*rig, error) {
	dir, err := os.MkdirTemp("", "kvbfs-peers-")
	if err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=90%"); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting a tmpfs: %w", err), os.Remove(dir))
	}
	return &rig{dir: dir, bytes: bytes}, nil
}

// close ends everything, the last one first.
func (r *rig) close() error {
	for i := len(r.stops) - 1; i >= 0; i-- {
		r.stops[i]()
	}
	var err error
	for range 100 { // a process that ends still has files open
		if err = syscall.Unmount(r.dir, 0); err != syscall.EBUSY {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", r.dir, err)
	}
	return os.Remove(r.dir)
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// mkdir makes a mount point.
func (r *rig) mkdir(name string) (string, error) { return r.path(name), os.Mkdir(r.path(name), 0o700) }

// daemon starts a child that serves until it is ended, and waits until ready
// says so. Its output is told if it fails.
func (r *rig) daemon(ctx context.Context, unmount string, ready func() bool, args ...string) error {
	log, err := os.Create(r.path(filepath.Base(args[0]) + "-" + strconv.Itoa(len(r.stops)) + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// The death signal follows the thread that starts the child.
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r.stops = append(r.stops, func() { end(cmd, ended, unmount) })
	for deadline := time.Now().Add(time.Minute); !ready(); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("it ended at once (%v): %s", err, strings.TrimSpace(string(said)))
		default:
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(errors.New("it does not serve"), ctx.Err())
		}
	}
	return nil
}

// end unmounts what a child serves and ends it, by force if need be.
func end(cmd *exec.Cmd, ended chan error, unmount string) {
	if unmount != "" {
		for range 40 {
			if syscall.Unmount(unmount, 0) != syscall.EBUSY {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	}
	if unmount != "" {
		_ = syscall.Unmount(unmount, syscall.MNT_DETACH)
	}
}

// sized says whether a file is there and has its size.
func sized(path string, bytes int64) func() bool {
	return func() bool {
		fi, err := os.Stat(path)
		return err == nil && fi.Size() >= bytes
	}
}
