package demo

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
const marker = "KVBFS_DEMO"

// commandLimit is how long one command may take: many times what the longest
// needs on a slow machine. It turns a hang into a message.
const commandLimit = 60 * time.Second

// scratch is the place where everything happens.
type scratch struct {
	exe string
	dir string
	env []string
}

// swept counts what the sweep took down.
type swept struct {
	Mounts    int   `json:"mounts"`
	Loops     int   `json:"loop_devices"`
	Processes int   `json:"processes"`
	Bytes     int64 `json:"bytes"`
}

func newScratch(exe string) (*scratch, error) {
	dir, err := os.MkdirTemp("", "kvbfs-demo-")
	if err != nil {
		return nil, err
	}
	// The kernel names mounts and backing files without symbolic links.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	s := &scratch{exe: exe, dir: dir}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KVBFS_") || strings.HasPrefix(kv, "KVBFS_RIG=") {
			s.env = append(s.env, kv)
		}
	}
	s.env = append(s.env, marker+"="+dir, "KVBFS_STATE_DIR="+s.path("state"), "KVBFS_RUNTIME_DIR="+s.path("run"))
	for _, d := range []string{"state", "run"} {
		if err := os.Mkdir(s.path(d), 0o700); err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
	}
	// The registry of mounts is looked up by this process too.
	os.Setenv("KVBFS_STATE_DIR", s.path("state"))
	os.Setenv("KVBFS_RUNTIME_DIR", s.path("run"))
	return s, nil
}

func (s *scratch) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

// command prepares a child in a process group of its own, ended with ctx.
func (s *scratch) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = s.env
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	return cmd
}

// run runs a command and returns its output; the error carries the last line
// that it wrote, which is where tools say what is wrong.
func (s *scratch) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := s.command(ctx, args...)
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
	if args[0] == s.exe {
		name = "kvbfs " + args[1]
	}
	if ctx.Err() == context.DeadlineExceeded {
		return "", fmt.Errorf("%s did not end within %v: %s", name, commandLimit, said)
	}
	return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimPrefix(said, "kvbfs: "))
}

// kvbfs runs a verb of the binary on show.
func (s *scratch) kvbfs(ctx context.Context, args ...string) (string, error) {
	return s.run(ctx, append([]string{s.exe}, args...)...)
}

func (s *scratch) mount(ctx context.Context, c *column) error {
	_, err := s.kvbfs(ctx, "mount", c.dir, "--store", c.url)
	return err
}

func (s *scratch) umount(ctx context.Context, c *column) error {
	_, err := s.kvbfs(ctx, "umount", c.dir)
	return err
}

// sweep takes down whatever lives in the scratch, in the order of a shutdown
// first and then by force, and removes the directory. It is bounded in time.
func (s *scratch) sweep() (swept, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	var n swept
	n.Bytes = used(s.dir)
	mounts := s.mounts()
	n.Mounts, n.Loops, n.Processes = len(mounts), len(s.loops()), len(s.processes())
	for _, m := range mounts {
		if m.kind != kvbfsKind {
			s.unmount(ctx, m.dir)
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
			s.kvbfs(uctx, "umount", m.dir)
			stop()
		}
	}
	// What is left now does not go willingly. Killing the daemons fails all that
	// hangs on them, so the rest cannot block.
	for try := 0; try < 100; try++ {
		pids := s.processes()
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		for _, m := range s.mounts() {
			s.lazy(ctx, m.dir)
		}
		for _, dev := range s.loops() {
			losetup.Detach(ctx, dev)
		}
		if len(pids)+len(s.mounts())+len(s.loops()) == 0 {
			return n, os.RemoveAll(s.dir)
		}
		time.Sleep(30 * time.Millisecond)
	}
	// Removing files below a live mount would destroy what is in it.
	return n, fmt.Errorf("%s is still in use (%d mounts, %d loop devices, %d processes)",
		s.dir, len(s.mounts()), len(s.loops()), len(s.processes()))
}

// unmount unmounts one directory, with patience for whoever looks into it.
func (s *scratch) unmount(ctx context.Context, dir string) error {
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

// lazy takes a mount out of the tree whoever uses it.
func (s *scratch) lazy(ctx context.Context, dir string) {
	if syscall.Unmount(dir, syscall.MNT_DETACH) == syscall.EPERM {
		s.fusermount(ctx, "-z", dir)
	}
}

// fusermount unmounts a FUSE mount for an ordinary user.
func (s *scratch) fusermount(ctx context.Context, args ...string) error {
	var err error
	for _, tool := range []string{"fusermount3", "fusermount"} {
		if _, err = exec.LookPath(tool); err == nil {
			_, err = s.run(ctx, append([]string{tool, "-u"}, args...)...)
			return err
		}
	}
	return err
}

// kvbfsKind is the type of our own mounts in the mount table.
const kvbfsKind = "fuse.kvbfs"

type mountEntry struct{ dir, kind string }

// mounts lists the mounts in the scratch, innermost first.
func (s *scratch) mounts() []mountEntry {
	var ms []mountEntry
	for _, m := range losetup.MountTable() {
		if strings.HasPrefix(m.Point, s.dir+"/") {
			ms = append(ms, mountEntry{m.Point, m.Type})
		}
	}
	sort.SliceStable(ms, func(i, j int) bool { return len(ms[i].dir) > len(ms[j].dir) })
	return ms
}

// mounted says whether dir is a mount point now.
func (s *scratch) mounted(dir string) bool {
	for _, m := range s.mounts() {
		if m.dir == dir {
			return true
		}
	}
	return false
}

// loops lists the loop devices whose image is in the scratch.
func (s *scratch) loops() []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var devs []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), s.dir+"/") {
			devs = append(devs, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return devs
}

// processes lists our children and their children, by the mark in their
// environment. Zombies have none.
func (s *scratch) processes() []int {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	want := []byte(marker + "=" + s.dir)
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

// instructions say how to go on with what --keep leaves, and how to end it.
func (s *scratch) instructions(columns []*column) []string {
	lines := []string{
		"export KVBFS_STATE_DIR=" + s.path("state") + " KVBFS_RUNTIME_DIR=" + s.path("run"),
		s.exe + " status",
	}
	for _, c := range columns {
		lines = append(lines, s.exe+" umount "+c.dir)
		if c.server != nil {
			lines = append(lines, fmt.Sprintf("kill %d", c.server.pid()))
		}
	}
	return append(lines, "rm -r "+s.dir)
}
