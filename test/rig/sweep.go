package rig

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sweepLimit bounds one umount or detach of the sweep.
const sweepLimit = 30 * time.Second

// Sweep takes down everything in the scratch directory and removes it. It may
// be called more than once. What it cannot take down fails the test.
func (r *Rig) Sweep() {
	r.T.Helper()
	r.mu.Lock()
	done := r.swept
	r.swept = true
	r.mu.Unlock()
	if done {
		return
	}
	r.complaints()
	r.takeDown()
	if left := r.Leftovers(); len(left) > 0 {
		r.T.Errorf("left behind after the sweep:\n  %s", strings.Join(left, "\n  "))
		return // removing files below a live mount would destroy what is in it
	}
	if err := os.RemoveAll(r.Dir); err != nil {
		r.T.Errorf("removing the scratch directory: %v", err)
	}
}

// complaints fails the test if a daemon panicked or has a data race: a panic in
// one request is caught, so the test may not have noticed.
func (r *Rig) complaints() {
	logs, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
	races, _ := filepath.Glob(r.Path("race.*"))
	for _, f := range append(logs, races...) {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, word := range []string{"panic", "DATA RACE", "fatal error:"} {
			if word == "panic" && r.panics {
				continue
			}
			if i := bytes.Index(text, []byte(word)); i >= 0 {
				r.T.Errorf("%s tells of a %s:\n%.4000s", filepath.Base(f), word, text[max(0, i-500):])
				break
			}
		}
	}
}

// takeDown undoes in the order of a shutdown first, then by force.
func (r *Rig) takeDown() {
	tidy := func() {
		for _, m := range r.mounts() {
			if !m.fuse {
				r.Do(Cmd{Args: []string{"umount", m.dir}, Limit: sweepLimit})
			}
		}
		for _, dev := range r.Loops() {
			r.Do(Cmd{Args: []string{"losetup", "-d", dev}, Limit: sweepLimit})
		}
	}
	if len(r.mounts()) > 0 {
		tidy()
	}
	r.killAll() // requests in flight fail now, so nothing hangs any more
	for range 3 {
		ms := r.mounts()
		for _, m := range ms {
			syscall.Unmount(m.dir, syscall.MNT_DETACH)
			if m.fuse && os.Geteuid() != 0 {
				r.Do(Cmd{Args: []string{"fusermount3", "-u", "-z", m.dir}, Limit: sweepLimit})
			}
		}
		if len(r.Loops()) > 0 {
			tidy()
		}
		if len(r.mounts()) == 0 && len(r.Loops()) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Leftovers names what still lives in the scratch directory: mounts, loop
// devices, processes other than the test's own servers. Empty means that a
// clean-up was complete.
func (r *Rig) Leftovers() []string { return r.LeftoversBelow(r.Dir) }

// LeftoversBelow is Leftovers for one directory of the scratch directory;
// processes are counted by the whole rig.
func (r *Rig) LeftoversBelow(dir string) []string {
	var left []string
	for _, m := range r.mounts() {
		if m.dir == dir || strings.HasPrefix(m.dir, dir+"/") {
			left = append(left, "mount "+m.dir)
		}
	}
	for _, dev := range r.Loops() {
		left = append(left, "loop device "+dev)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pid := range r.Processes() {
		if r.servers[pid] {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d: %s", pid, strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))))
	}
	return left
}

type mountEntry struct {
	dir  string
	fuse bool
}

// mounts lists the mounts below the scratch directory, and those of loop
// devices whose image is there, innermost first.
func (r *Rig) mounts() []mountEntry {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.T.Errorf("mountinfo: %v", err)
		return nil
	}
	loops := map[string]bool{}
	for _, dev := range r.Loops() {
		loops[dev] = true
	}
	var ms []mountEntry
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		dash := 6
		for dash < len(f) && f[dash] != "-" {
			dash++
		}
		if dash+2 >= len(f) {
			continue
		}
		dir := unescape(f[4])
		if strings.HasPrefix(dir, r.Dir+"/") || loops[f[dash+2]] {
			ms = append(ms, mountEntry{dir, strings.HasPrefix(f[dash+1], "fuse")})
		}
	}
	sort.SliceStable(ms, func(i, j int) bool { return len(ms[i].dir) > len(ms[j].dir) })
	return ms
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	for _, e := range [][2]string{{`\040`, " "}, {`\011`, "\t"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e[0], e[1])
	}
	return s
}

// Loops lists the loop devices whose image lies in the scratch directory.
func (r *Rig) Loops() []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var devs []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), r.Dir+"/") {
			devs = append(devs, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devs
}

// Processes lists the live processes that were started in this rig.
func (r *Rig) Processes() []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*/environ")
	want := []byte(marker + "=" + r.Dir + "\x00")
	var pids []int
	for _, f := range dirs {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(append(env, 0), want) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
		if pid != os.Getpid() && !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	if len(rest) == 0 || rest[0] != 'Z' && rest[0] != 'X' {
		return false
	}
	// The first thread may have ended before the others, which hold files and locks.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err != nil || len(tasks) <= 1
}

// killAll kills the processes of the rig, by pid, until none is left.
func (r *Rig) killAll() {
	for range 50 {
		pids := r.Processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
			syscall.Kill(pid, syscall.SIGCONT)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
