package fusefs

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxUsers bounds how many users a message names.
const maxUsers = 8

// Users names who uses a mount: loop devices (and what is mounted on them),
// mounts below it, and processes with files, working directories or mappings in
// it. It reads /proc and /sys only and never touches the mount, so it works while
// the mount is stuck, and for the process that serves it. Processes of other
// users are seen by root only.
func Users(dir string) []string {
	var users []string
	users = append(users, loopUsers(dir)...)
	for _, m := range mounts() {
		if m.point != dir && below(m.point, dir) {
			users = append(users, fmt.Sprintf("the mount on %s", m.point))
		}
	}
	users = append(users, bounded(procLimit, func(found func(string)) { processUsers(dir, found) })...)
	if n := len(users) - maxUsers; n > 0 {
		users = append(users[:maxUsers], fmt.Sprintf("%d more", n))
	}
	return users
}

// below says whether path is dir or inside it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func loopUsers(dir string) (users []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		backing, err := os.ReadFile(f)
		path := strings.TrimSuffix(string(backing), "\n")
		if err != nil || !below(path, dir) {
			continue
		}
		name := filepath.Base(filepath.Dir(filepath.Dir(f)))
		user := fmt.Sprintf("/dev/%s (%s)", name, filepath.Base(path))
		number, _ := os.ReadFile(filepath.Join("/sys/block", name, "dev"))
		var points []string
		for _, m := range mounts() {
			if m.device == strings.TrimSpace(string(number)) {
				points = append(points, m.point)
			}
		}
		if len(points) > 0 {
			user += " mounted on " + strings.Join(points, " and ")
		}
		users = append(users, user)
	}
	return users
}

// procLimit bounds the look at one process in /proc. The kernel makes who reads a
// process's mappings wait for a page fault of that process, and with a stuck mount
// that may take for ever. (All of them together may take long, too: a loaded machine
// is not a stuck one.)
const procLimit = 3 * time.Second

// bounded collects what look finds until it returns, or has said nothing for the
// limit; then it is left behind, with a word that not all was seen. An empty find is a
// sign of life.
func bounded(limit time.Duration, look func(found func(string))) (all []string) {
	lines := make(chan string)
	quit := make(chan struct{})
	defer close(quit)
	go func() {
		defer close(lines)
		look(func(s string) {
			select {
			case lines <- s:
			case <-quit:
			}
		})
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case s, ok := <-lines:
			if !ok {
				return all
			}
			timer.Reset(limit)
			if s != "" {
				all = append(all, s)
			}
		case <-timer.C:
			return append(all, "perhaps a process that cannot be looked at: /proc does not answer")
		}
	}
}

func processUsers(dir string, found func(string)) {
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		found("")
		if how := usedBy(filepath.Join("/proc", p.Name()), dir); how != "" {
			comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
			found(fmt.Sprintf("%s (pid %d, %s)", bytes.TrimSpace(comm), pid, how))
		}
	}
}

// usedBy says how the process uses dir, "" if it does not. readlink of these
// links asks the kernel for a name and does not touch the file.
func usedBy(proc, dir string) string {
	for _, link := range []string{"cwd", "root"} {
		if path, err := os.Readlink(filepath.Join(proc, link)); err == nil && below(path, dir) {
			return "in " + path
		}
	}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd"))
	var open []string
	for _, fd := range fds {
		path, err := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if err == nil && below(path, dir) && !slices.Contains(open, path) {
			open = append(open, path)
		}
	}
	if len(open) > 0 {
		return "has open " + strings.Join(open, " and ")
	}
	maps, err := os.Open(filepath.Join(proc, "maps"))
	if err != nil {
		return ""
	}
	defer maps.Close()
	for sc := bufio.NewScanner(maps); sc.Scan(); {
		if i := strings.IndexByte(sc.Text(), '/'); i >= 0 && below(sc.Text()[i:], dir) {
			return "has mapped " + sc.Text()[i:]
		}
	}
	return ""
}

// processOf returns the process of a thread: FUSE names the thread that asks.
func processOf(tid uint32) uint32 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return tid // gone, or of another namespace
	}
	for line := range strings.Lines(string(status)) {
		if num, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if pid, err := strconv.ParseUint(strings.TrimSpace(num), 10, 32); err == nil {
				return uint32(pid)
			}
		}
	}
	return tid
}
