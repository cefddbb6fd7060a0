// Package scratch is a private place in which a whole kvbfs is tried: a directory
// with state and runtime directories of its own, in which children of this
// process run, mount and attach what they like.
//
// # The nouns
//
//   - A place is the directory, the environment of its children, and the binary
//     that they run.
//   - The sweep takes down whatever lives in the place. It goes by what the kernel
//     lists (mounts, loop devices, processes), so it is complete whenever the work
//     is interrupted.
//
// Children live in process groups of their own: an interrupt from the terminal
// reaches this process alone, which then sweeps. A place belongs to one goroutine,
// except Run and Command, which may be used by many.
package scratch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/losetup"
)

// marker is the variable by which the sweep knows our processes.
const marker = "KVBFS_SCRATCH"

// CommandLimit is how long one command may take: many times what the longest
// needs on a slow machine. It turns a hang into a message.
const CommandLimit = 60 * time.Second

// Place is where everything happens.
type Place struct {
	Exe string // the kvbfs binary
	Dir string // without symbolic links

	env []string
}

// Swept counts what the sweep took down.
type Swept struct {
	Mounts    int   `json:"mounts"`
	Loops     int   `json:"loop_devices"`
	Processes int   `json:"processes"`
	Bytes     int64 `json:"bytes"`
}

// String names what there was, for people.
func (n Swept) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{n.Mounts, "mount"}, {n.Loops, "loop device"}, {n.Processes, "process"}} {
		if p.n > 0 {
			parts = append(parts, count(p.n, p.what))
		}
	}
	return strings.Join(append(parts, fmt.Sprintf("%.0f MB", float64(n.Bytes)/1e6)), ", ")
}

func count(n int, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "s"):
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// New makes a place for a purpose of one word, which its directory's name says.
// This process looks into the same registry of mounts from now on.
func New(exe, purpose string) (*Place, error) {
	dir, err := os.MkdirTemp("", "kvbfs-"+purpose+"-")
	if err != nil {
		return nil, err
	}
	// The kernel names mounts and backing files without symbolic links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	s := &Place{Exe: exe, Dir: dir}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KVBFS_") || strings.HasPrefix(kv, "KVBFS_RIG=") {
			s.env = append(s.env, kv)
		}
	}
	s.env = append(s.env, marker+"="+dir, "KVBFS_STATE_DIR="+s.Path("state"), "KVBFS_RUNTIME_DIR="+s.Path("run"))
	for _, d := range []string{"state", "run"} {
		if err := os.Mkdir(s.Path(d), 0o700); err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
	}
	// The registry of mounts is looked up by this process too.
	os.Setenv("KVBFS_STATE_DIR", s.Path("state"))
	os.Setenv("KVBFS_RUNTIME_DIR", s.Path("run"))
	return s, nil
}

// Path returns a path in the place.
func (s *Place) Path(names ...string) string {
	return filepath.Join(append([]string{s.Dir}, names...)...)
}

// Command prepares a child in a process group of its own, ended with ctx.
func (s *Place) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = s.env
	cmd.Dir = s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	return cmd
}

// Run runs a command and returns its output; the error carries the last line
// that it wrote, which is where tools say what is wrong.
func (s *Place) Run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, CommandLimit)
	defer cancel()
	cmd := s.Command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() {
		return out.String(), nil
	}
	said := strings.TrimSpace(errs.String())
	if said == "" {
		said = strings.TrimSpace(out.String())
	}
	if i := strings.LastIndexByte(said, '\n'); i >= 0 {
		said = said[i+1:]
	}
	name := filepath.Base(args[0])
	if args[0] == s.Exe {
		name = "kvbfs " + args[1]
	}
	if ctx.Err() == context.DeadlineExceeded {
		return "", fmt.Errorf("%s did not end within %v: %s", name, CommandLimit, said)
	}
	return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimPrefix(said, "kvbfs: "))
}

// Kvbfs runs a verb of the binary on show.
func (s *Place) Kvbfs(ctx context.Context, args ...string) (string, error) {
	return s.Run(ctx, append([]string{s.Exe}, args...)...)
}

// Mount mounts a store on dir, with more flags of `kvbfs mount`.
func (s *Place) Mount(ctx context.Context, dir, url string, more ...string) error {
	_, err := s.Kvbfs(ctx, append([]string{"mount", dir, "--store", url}, more...)...)
	return err
}

// Umount unmounts a store and waits until everything is stored.
func (s *Place) Umount(ctx context.Context, dir string) error {
	_, err := s.Kvbfs(ctx, "umount", dir)
	return err
}

// Release unmounts and detaches in the order of a shutdown, as far as it goes
// willingly. Servers stay.
func (s *Place) Release(ctx context.Context) {
	for _, m := range s.mounts() {
		if m.kind != kvbfsKind {
			s.Unmount(ctx, m.dir)
		}
	}
	for _, dev := range s.loops() {
		dctx, stop := context.WithTimeout(ctx, 10*time.Second)
		losetup.Detach(dctx, dev)
		stop()
	}
	for _, m := range s.mounts() {
		if m.kind == kvbfsKind {
			uctx, stop := context.WithTimeout(ctx, 10*time.Second)
			s.Kvbfs(uctx, "umount", m.dir)
			stop()
		}
	}
}

// Sweep takes down whatever lives in the scratch, in the order of a shutdown
// first and then by force, and removes the directory. It is bounded in time.
func (s *Place) Sweep() (Swept, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	var n Swept
	n.Bytes = used(s.Dir)
	n.Mounts, n.Loops, n.Processes = len(s.mounts()), len(s.loops()), len(s.processes())
	s.Release(ctx)
	// What is left now does not go willingly. Killing the daemons fails all that
	// hangs on them, so the rest cannot block.
	for try := 0; try < 100; try++ {
		pids := s.processes()
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, m := range s.mounts() {
			s.Lazy(ctx, m.dir)
		}
		for _, dev := range s.loops() {
			losetup.Detach(ctx, dev)
		}
		if len(pids)+len(s.mounts())+len(s.loops()) == 0 {
			return n, os.RemoveAll(s.Dir)
		}
		time.Sleep(30 * time.Millisecond)
	}
	// Removing files below a live mount would destroy what is in it.
	return n, fmt.Errorf("%s is still in use (%d mounts, %d loop devices, %d processes)",
		s.Dir, len(s.mounts()), len(s.loops()), len(s.processes()))
}

// Unmount unmounts one directory, with patience for whoever looks into it.
func (s *Place) Unmount(ctx context.Context, dir string) error {
	var err error
	for range 20 {
		if err = syscall.Unmount(dir, 0); err != syscall.EBUSY {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err == syscall.EPERM {
		return s.fusermount(ctx, dir)
	}
	return err
}

// Lazy takes a mount out of the tree whoever uses it.
func (s *Place) Lazy(ctx context.Context, dir string) {
	if syscall.Unmount(dir, syscall.MNT_DETACH) == syscall.EPERM {
		s.fusermount(ctx, "-z", dir)
	}
}

// fusermount unmounts a FUSE mount for an ordinary user.
func (s *Place) fusermount(ctx context.Context, args ...string) error {
	var err error
	for _, tool := range []string{"fusermount3", "fusermount"} {
		if _, err = exec.LookPath(tool); err == nil {
			_, err = s.Run(ctx, append([]string{tool, "-u"}, args...)...)
			return err
		}
	}
	return err
}

// kvbfsKind is the type of our own mounts in the mount table.
const kvbfsKind = "fuse.kvbfs"

type mountEntry struct{ dir, kind string }

// mounts lists the mounts in the scratch, innermost first.
func (s *Place) mounts() []mountEntry {
	var ms []mountEntry
	for _, m := range losetup.MountTable() {
		if strings.HasPrefix(m.Point, s.Dir+"/") {
			ms = append(ms, mountEntry{m.Point, m.Type})
		}
	}
	sort.SliceStable(ms, func(i, j int) bool { return len(ms[i].dir) > len(ms[j].dir) })
	return ms
}

// Mounted says whether dir is a mount point now.
func (s *Place) Mounted(dir string) bool {
	for _, m := range s.mounts() {
		if m.dir == dir {
			return true
		}
	}
	return false
}

// loops lists the loop devices whose image is in the scratch.
func (s *Place) loops() []losetup.Device {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var list []losetup.Device
	for _, f := range files {
		d, err := losetup.Get(filepath.Base(filepath.Dir(filepath.Dir(f))))
		if err == nil && strings.HasPrefix(d.Backing, s.Dir+"/") {
			list = append(list, d)
		}
	}
	return list
}

// processes lists our children and their children, by the mark in their
// environment. Zombies have none.
func (s *Place) processes() []int {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	want := []byte(marker + "=" + s.Dir)
	var pids []int
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, kv := range bytes.Split(env, []byte{0}) {
			if bytes.Equal(kv, want) {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// used sums what the files of the scratch itself occupy; mounts are left out.
func used(dir string) int64 {
	var top syscall.Stat_t
	if syscall.Lstat(dir, &top) != nil {
		return 0
	}
	var n int64
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err != nil || syscall.Lstat(p, &st) != nil {
			return nil
		}
		if st.Dev != top.Dev {
			return fs.SkipDir
		}
		n += st.Blocks * 512
		return nil
	})
	return n
}

// RootHere says whether we are root of the machine and not of a user namespace,
// where loop devices and ext4 cannot be had.
func RootHere() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(m))
	return os.Geteuid() == 0 && (err != nil || len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295")
}
