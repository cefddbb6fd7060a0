package daemon

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FUSE is a FUSE mount as the kernel lists it.
type FUSE struct {
	Dir    string
	Type   string // fuse.kvbfs, fuse.sshfs ...
	Source string
	// Connection is the directory of the kernel's control files, whose file abort
	// ends a mount that hangs; empty if there is none.
	Connection string
}

// MountAt returns what is mounted on dir, which must be canonical, by the kernel's
// list: it does not touch the mount.
func MountAt(dir string) (m FUSE, ok bool) {
	for _, e := range mountList() {
		if e.Dir == dir { // the last one that is listed is on top
			m, ok = e, true
		}
	}
	return m, ok
}

// KVBFSMounts lists the mount points of kvbfs, served or not.
func KVBFSMounts() []string {
	var out []string
	for _, e := range mountList() {
		if e.Type == "fuse.kvbfs" {
			out = append(out, e.Dir)
		}
	}
	return out
}

func mountList() []FUSE {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []FUSE
	for line := range strings.Lines(string(data)) {
		// 36 35 98:0 /root /mnt/point options optional... - type source superoptions
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		m := FUSE{Dir: unescape(l[4]), Type: r[0], Source: unescape(r[1])}
		if _, minor, found := strings.Cut(l[2], ":"); found && strings.HasPrefix(m.Type, "fuse") {
			m.Connection = "/sys/fs/fuse/connections/" + minor
		}
		out = append(out, m)
	}
	return out
}

// FUSEMount is MountAt for FUSE mounts only.
func FUSEMount(dir string) (FUSE, bool) {
	m, ok := MountAt(dir)
	return m, ok && strings.HasPrefix(m.Type, "fuse") && m.Type != "fusectl"
}

// unescape undoes the kernel's octal escapes of space, tab, newline, backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Dead says whether nobody serves the mount any more. A served one that hangs is
// not dead: the look is bounded.
func (m FUSE) Dead() bool {
	done := make(chan error, 1)
	go func() {
		_, err := os.Lstat(m.Dir)
		done <- err
	}()
	select {
	case err := <-done:
		return errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED)
	case <-time.After(2 * time.Second):
		return false
	}
}

// Detach takes a mount out of the tree at once, whoever uses it. As an ordinary
// user fusermount3 does it.
func Detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		for _, tool := range []string{"fusermount3", "fusermount"} {
			if path, lookErr := exec.LookPath(tool); lookErr == nil {
				return exec.Command(path, "-u", "-z", "--", dir).Run()
			}
		}
	}
	return err
}
