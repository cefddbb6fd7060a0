package losetup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	goloop "github.com/freddierice/go-losetup"
)

// Users names the mounts, swaps, stacked devices and processes that use a
// device, for messages. It touches neither the device nor its backing file. What
// it may not look at (other users' processes) it leaves out.
func Users(device string) []string {
	n, err := numberOf(device)
	if err != nil {
		return nil
	}
	list, whole := claimsSoon(n)
	more, all := openersSoon(n, -1)
	list = append(list, more...)
	if !whole || !all {
		list = append(list, "perhaps used by a process that cannot be looked at: /proc does not answer")
	}
	return list
}

// procLimit bounds the look at one process in /proc, which may wait for one that is
// stuck on a dead disk. (All of them together may take long, too: a loaded machine is
// not a stuck one.)
const procLimit = 3 * time.Second

// bounded collects what look finds until it returns, or has said nothing for the
// limit; then it is left behind, and not all was seen. An empty find is a sign of life.
func bounded(limit time.Duration, look func(found func(string))) (all []string, whole bool) {
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
				return all, true
			}
			timer.Reset(limit)
			if s != "" {
				all = append(all, s)
			}
		case <-timer.C:
			return all, false
		}
	}
}

// claims are the users that will not go away by themselves: mounts in any mount
// namespace, swap, and devices on top.
func claims(number int) []string {
	list, _ := claimsSoon(number)
	return list
}

func claimsSoon(number int) (list []string, whole bool) {
	return bounded(procLimit, func(found func(string)) { findClaims(number, found) })
}

func findClaims(number int, found func(string)) {
	seen := map[string]bool{}
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			found(s)
		}
	}
	device, majorMinor := devicePath(number), fmt.Sprintf("%d:%d", goloop.Major, number)
	uses := func(m Mount) bool { return m.Device == majorMinor || m.Source == device }
	own, _ := os.Readlink("/proc/self/ns/mnt")
	for _, m := range MountTable() {
		if uses(m) {
			add("mounted on " + m.Point)
		}
	}
	namespaces := map[string]bool{own: true}
	for _, pid := range processes() {
		found("")
		ns, err := os.Readlink(filepath.Join("/proc", pid, "ns/mnt"))
		if err != nil || namespaces[ns] {
			continue
		}
		namespaces[ns] = true
		for _, m := range readMounts(filepath.Join("/proc", pid, "mountinfo")) {
			if uses(m) {
				add(fmt.Sprintf("mounted on %s in the mount namespace of %s", m.Point, processName(pid)))
			}
		}
	}
	if b, err := os.ReadFile("/proc/swaps"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 && f[0] == device {
				add("used as swap")
			}
		}
	}
	if holders, err := os.ReadDir(sysPath(number, "holders")); err == nil {
		for _, h := range holders {
			add("held by /dev/" + h.Name())
		}
	}
}

// openers are the processes that have the device open; ownFD of this process is
// left out. It reads the links in /proc only: a stat would touch what they name.
func openers(number, ownFD int) []string {
	list, _ := openersSoon(number, ownFD)
	return list
}

func openersSoon(number, ownFD int) (list []string, whole bool) {
	return bounded(procLimit, func(found func(string)) { findOpeners(number, ownFD, found) })
}

func findOpeners(number, ownFD int, found func(string)) {
	device, self := devicePath(number), strconv.Itoa(os.Getpid())
	for _, pid := range processes() {
		found("")
		dir := filepath.Join("/proc", pid, "fd")
		fds, err := readNames(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if pid == self && fd == strconv.Itoa(ownFD) {
				continue
			}
			if to, err := os.Readlink(filepath.Join(dir, fd)); err == nil && to == device {
				found("open in " + processName(pid))
				break
			}
		}
	}
}

func processes() []string {
	names, _ := readNames("/proc")
	var pids []string
	for _, n := range names {
		if n[0] >= '1' && n[0] <= '9' {
			pids = append(pids, n)
		}
	}
	return pids
}

// readNames lists a directory without a stat of what is in it.
func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func processName(pid string) string {
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(comm)))
}
