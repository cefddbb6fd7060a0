package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Mount is a kvbfs daemon and its mount point.
type Mount struct {
	Dir string
	r   *Rig
	pid int
}

// Mount runs `kvbfs mount` and finds the daemon's process.
func (r *Rig) Mount(store string, args ...string) *Mount {
	r.T.Helper()
	m := &Mount{r: r, Dir: r.unique("mnt", "")}
	if err := os.Mkdir(m.Dir, 0o755); err != nil {
		r.T.Fatal(err)
	}
	m.Mount(store, args...)
	return m
}

// Mount mounts again, at the same place.
func (m *Mount) Mount(store string, args ...string) {
	m.r.T.Helper()
	m.r.Kvbfs(append(m.r.MountArgs(m.Dir, "--store", store), args...)...)
	m.pid = m.r.Daemon(m.Dir)
	if m.pid == 0 {
		m.r.T.Fatalf("mounted %s, but the registry names no daemon", m.Dir)
	}
}

// MountArgs are the arguments of kvbfs that mount dir, with the rig's transport and
// cache.
func (r *Rig) MountArgs(dir string, args ...string) []string {
	all := append([]string{"mount", dir}, args...)
	if r.Transport != "" {
		all = append(all, "--transport="+r.Transport)
	}
	return append(all, r.CacheArgs()...)
}

// CacheArgs are the flags of `kvbfs mount` and `kvbfs up` for the rig's cache.
func (r *Rig) CacheArgs() (all []string) {
	if r.Cache != "" {
		all = append(all, "--cache-size="+r.Cache, "--read-ahead=1M")
	}
	if r.CacheMode != "" {
		all = append(all, "--cache="+r.CacheMode)
	}
	return all
}

// Defers says whether the rig's mounts acknowledge overwrites before they are stored:
// then those do not wait for a server that is silent.
func (r *Rig) Defers() bool { return r.CacheMode == "writeback" }

// Daemon returns the process id of the daemon that serves dir, from the registry
// in the runtime directory; 0 if there is none.
func (r *Rig) Daemon(dir string) int {
	files, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.json"))
	for _, f := range files {
		var m struct {
			Dir string `json:"dir"`
			PID int    `json:"pid"`
		}
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &m) == nil && m.Dir == dir {
			return m.PID
		}
	}
	return 0
}

// OnlyDaemon returns the process id of the one daemon of this rig.
func (r *Rig) OnlyDaemon() int {
	r.T.Helper()
	files, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.json"))
	var m struct {
		PID int `json:"pid"`
	}
	if len(files) != 1 {
		r.T.Fatalf("%d mounts in the registry, want one", len(files))
	}
	if b, err := os.ReadFile(files[0]); err != nil || json.Unmarshal(b, &m) != nil || !Alive(m.PID) {
		r.T.Fatalf("no living daemon in %s: %s, %v", files[0], b, err)
	}
	return m.PID
}

// PID of the daemon.
func (m *Mount) PID() int { return m.pid }

// Image is the path of a volume's file.
func (m *Mount) Image(volume string) string { return filepath.Join(m.Dir, volume) }

// Umount unmounts as a user does, and waits until the daemon is gone.
func (m *Mount) Umount() {
	m.r.T.Helper()
	m.r.Kvbfs("umount", m.Dir)
	Eventually(m.r.T, 30*time.Second, "the daemon ends after umount", func() bool { return !Alive(m.pid) })
}

// Kill kills the daemon with SIGKILL, as a crash would, and clears the dead
// mount away as an operator would.
func (m *Mount) Kill() {
	m.r.T.Helper()
	m.KillOnly()
	syscall.Unmount(m.Dir, syscall.MNT_DETACH)
}

// KillOnly leaves the dead mount.
func (m *Mount) KillOnly() {
	m.r.T.Helper()
	if err := syscall.Kill(m.pid, syscall.SIGKILL); err != nil {
		m.r.T.Fatalf("kill daemon %d: %v", m.pid, err)
	}
	Eventually(m.r.T, 10*time.Second, "the daemon is gone", func() bool { return !Alive(m.pid) })
}

// Alive says whether a process exists and is no zombie.
func Alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil && !zombie(pid) }

// Stop freezes a process. It returns when every thread has stopped: the signal only
// begins that, and a thread that still runs answers what was sent after it.
func Stop(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("stopping process %d: %v", pid, err)
	}
	Eventually(t, 10*time.Second, "the process has stopped", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range tasks {
			stat, err := os.ReadFile(name)
			_, rest, ok := strings.Cut(string(stat), ") ") // the state follows the name
			if err != nil || !ok || !strings.HasPrefix(rest, "T") {
				return false
			}
		}
		return err == nil && len(tasks) > 0
	})
}

// Create creates a volume.
func (r *Rig) Create(store, name, size string) {
	r.T.Helper()
	r.Kvbfs("volume", "create", name, "--size", size, "--store", store)
}

// Attach attaches a volume of the mount and returns the device.
func (m *Mount) Attach(volume string) string {
	m.r.T.Helper()
	out := m.r.Kvbfs("attach", volume, "--dir", m.Dir, "--json")
	var d struct {
		Device string `json:"device"`
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil || !strings.HasPrefix(d.Device, "/dev/") {
		m.r.T.Fatalf("attach --json printed %q (%v)", out, err)
	}
	return d.Device
}

// Detach detaches a device.
func (r *Rig) Detach(dev string) {
	r.T.Helper()
	r.Kvbfs("detach", dev)
}

// Mkfs makes a file system, quietly.
func (r *Rig) Mkfs(fs, dev string) {
	r.T.Helper()
	r.mkfs(fs, dev)
}

// MkfsOver is Mkfs on what is there, without a discard of the device, which may be
// small.
func (r *Rig) MkfsOver(fs, dev string) {
	r.T.Helper()
	// Below 300 MiB mkfs.xfs 6 wants to be told; older ones do not know the word.
	if fs == "xfs" && r.Try("mkfs.xfs", "-q", "-f", "-K", "--unsupported", dev).Code == 0 {
		return
	}
	// Lazily, ext4 zeroes its tables some seconds after it was mounted: without data.
	keep := map[string][]string{"ext4": {"-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "xfs": {"-K"}, "btrfs": {"-K"}}
	r.mkfs(fs, dev, keep[fs]...)
}

func (r *Rig) mkfs(fs, dev string, opts ...string) {
	r.T.Helper()
	args := map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F"},
		"xfs":   {"mkfs.xfs", "-q", "-f"},
		"btrfs": {"mkfs.btrfs", "-q", "-f"},
	}[fs]
	if args == nil {
		r.T.Fatalf("mkfs: %q?", fs)
	}
	args = append(append(args, opts...), dev)
	// mkfs.btrfs gives up at a loop device, of whichever test, whose mount is dead just now.
	for try := 0; fs == "btrfs" && try < 20; try++ {
		res := r.Try(args...)
		if res.Code == 0 {
			return
		} else if !strings.Contains(res.Stderr, "cannot check mount status") {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	r.Run(args...)
}

// MountFS mounts a file system and returns its directory.
func (r *Rig) MountFS(dev, fs string, opts ...string) string {
	r.T.Helper()
	dir := r.unique("fs", "")
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.T.Fatal(err)
	}
	args := []string{"mount", "-t", fs}
	if len(opts) > 0 {
		args = append(args, "-o", strings.Join(opts, ","))
	}
	r.Run(append(args, dev, dir)...)
	return dir
}

// UmountFS unmounts a file system.
func (r *Rig) UmountFS(dir string) {
	r.T.Helper()
	r.Run("umount", dir)
}

// Fsck checks an unmounted file system and fails the test unless it is clean.
func (r *Rig) Fsck(fs, dev string) {
	r.T.Helper()
	switch fs {
	case "ext4":
		r.Run("e2fsck", "-f", "-n", dev)
	case "xfs":
		r.Run("xfs_repair", "-n", dev)
	case "btrfs":
		r.Run("btrfs", "check", "--readonly", dev)
	default:
		r.T.Fatalf("fsck: %q?", fs)
	}
}

// Place is what `volume where --json` tells of one block.
type Place struct {
	Server  string `json:"server"`
	Slot    int    `json:"slot"`
	Key     string `json:"key"`
	Command string `json:"command"` // fetches the block
	Present bool   `json:"present"`
	Stored  bool   `json:"stored"`
	CRC     string `json:"crc32c"`
}

// Where asks where the block of a byte offset is.
func (r *Rig) Where(store, volume string, off int64) Place {
	r.T.Helper()
	out := r.Kvbfs("volume", "where", volume, fmt.Sprint(off), "--json", "--store", store)
	var p Place
	if err := json.Unmarshal([]byte(out), &p); err != nil || p.Key == "" {
		r.T.Fatalf("volume where --json printed %q (%v)", out, err)
	}
	return p
}
