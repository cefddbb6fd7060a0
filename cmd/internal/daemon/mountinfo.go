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
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return m, false
	}
	for _, line := range strings.Split(string(data), "\n") {
		// 36 35 98:0 /root /mnt/point options optional... - type source superoptions
		fields := strings.Fields(line)
		dash := -1
		for i, f := range fields {
			if f == "-" && i >= 6 {
				dash = i
				break
			}
		}
		if dash < 0 || len(fields) < dash+3 || unescape(fields[4]) != dir {
			continue
		}
		// The last one that is listed is on top.
		m, ok = FUSE{Dir: dir, Type: fields[dash+1], Source: unescape(fields[dash+2])}, true
		if _, minor, found := strings.Cut(fields[2], ":"); found && strings.HasPrefix(m.Type, "fuse") {
			m.Connection = "/sys/fs/fuse/connections/" + minor
		}
	}
	return m, ok
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
