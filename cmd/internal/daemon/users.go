package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kvbfs/kvbfs/losetup"
)

// Devices names the loop devices on images of a mount and who uses them. It
// reads sysfs only and never touches the mount.
func Devices(dir string) []string {
	var out []string
	for _, d := range devicesOn(dir) {
		text := fmt.Sprintf("%s (%s)", d.Path, filepath.Base(d.Backing))
		if users := losetup.Users(d.Path); len(users) > 0 {
			text += " used by " + strings.Join(users, ", ")
		}
		out = append(out, text)
	}
	return out
}

func devicesOn(dir string) []losetup.Device {
	all, err := losetup.List()
	if err != nil {
		return nil // no loop driver, no loop device
	}
	var out []losetup.Device
	for _, d := range all {
		if strings.HasPrefix(d.Backing, dir+"/") {
			out = append(out, d)
		}
	}
	return out
}

// maxUsers bounds a message; more names help nobody.
const maxUsers = 8

// Processes names the processes that have a file or directory of the mount open,
// as far as we may see. It reads links of /proc, which does not touch the mount.
func Processes(dir string) []string {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []string
	for _, p := range procs {
		if p.Name()[0] < '0' || p.Name()[0] > '9' {
			continue
		}
		what, ok := uses(filepath.Join("/proc", p.Name()), dir)
		if !ok {
			continue
		}
		comm, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
		out = append(out, fmt.Sprintf("process %s (%s, %s)", p.Name(), strings.TrimSpace(string(comm)), what))
		if len(out) == maxUsers {
			return append(out, "...")
		}
	}
	return out
}

// uses says what a process has of the mount: its working directory or a file.
func uses(proc, dir string) (what string, ok bool) {
	inside := func(link string) (string, bool) {
		target, err := os.Readlink(link)
		if err != nil {
			return "", false
		}
		return strings.TrimPrefix(target, dir+"/"), target == dir || strings.HasPrefix(target, dir+"/")
	}
	for _, l := range []string{"cwd", "root"} {
		if _, ok := inside(filepath.Join(proc, l)); ok {
			return l, true
		}
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		return "", false
	}
	for _, f := range fds {
		if name, ok := inside(filepath.Join(proc, "fd", f.Name())); ok {
			return name, true
		}
	}
	return "", false
}
