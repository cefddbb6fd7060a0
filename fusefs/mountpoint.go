package fusefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// fsSubtype makes the type in /proc/mounts "fuse.kvbfs".
const fsSubtype = "kvbfs"

const fsType = "fuse." + fsSubtype

// passedFD returns N of /dev/fd/N, -1 for any other path.
func passedFD(dir string) int {
	num, ok := strings.CutPrefix(dir, "/dev/fd/")
	n, err := strconv.Atoi(num)
	if !ok || err != nil || n < 0 {
		return -1
	}
	return n
}

// checkMountPoint returns dir as an absolute path without symbolic links, if it
// is fit to be a mount point. It does not look at what is mounted there: that
// could be a mount whose daemon is dead or stuck.
func checkMountPoint(dir string) (string, error) {
	if passedFD(dir) >= 0 {
		return dir, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	if abs == "/" {
		return "", fmt.Errorf("%w: / cannot be one", ErrMountPoint)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrMountPoint, err)
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	for _, m := range mounts() {
		if m.point == abs && m.fstype == fsType {
			return "", fmt.Errorf("%w: %s has a kvbfs mount already; if its daemon is dead: fusermount3 -u %s", ErrMountPoint, abs, abs)
		}
	}
	st, err := os.Lstat(abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: %s does not exist; make it: mkdir -p %s", ErrMountPoint, abs, abs)
	case Unserved(err):
		return "", fmt.Errorf("%w: a dead FUSE mount is on %s; remove it: fusermount3 -u %s", ErrMountPoint, abs, abs)
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrMountPoint, err)
	case st.Mode()&fs.ModeSymlink != 0 && os.Geteuid() == 0:
		return "", fmt.Errorf("%w: %s is a symbolic link, which root does not follow; give the directory itself", ErrMountPoint, abs)
	case st.Mode()&fs.ModeSymlink != 0:
		if abs, err = filepath.EvalSymlinks(abs); err != nil {
			return "", fmt.Errorf("%w: %w", ErrMountPoint, err)
		}
		return checkMountPoint(abs)
	case !st.IsDir():
		return "", fmt.Errorf("%w: %s is not a directory", ErrMountPoint, abs)
	}
	if realRoot() {
		if err := checkParents(abs); err != nil {
			return "", err
		}
	}
	return abs, nil
}

// checkParents refuses directories in which somebody else could put another
// directory or a link in the place of the mount point.
func checkParents(dir string) error {
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		st, err := os.Lstat(d)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrMountPoint, err)
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 {
			return fmt.Errorf("%w: %s, above %s, belongs to user %d and not to root", ErrMountPoint, d, dir, sys.Uid)
		}
		if st.Mode().Perm()&0o002 != 0 && st.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("%w: everybody may write to %s, above %s; use another place or chmod o-w", ErrMountPoint, d, dir)
		}
		if d == "/" {
			return nil
		}
	}
}

// realRoot says whether we are root and not only in a user namespace, where the
// owners of directories look foreign.
func realRoot() bool {
	if os.Geteuid() != 0 {
		return false
	}
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") == "0 0 4294967295"
}

// mountEntry is a line of /proc/self/mountinfo.
type mountEntry struct {
	minor  int    // of st_dev; for FUSE the number of the connection
	device string // major:minor
	point  string
	fstype string
	source string
}

// mounts lists what is mounted, in the order of mounting. It touches no mount.
func mounts() []mountEntry {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return parseMounts(string(data))
}

func parseMounts(data string) (entries []mountEntry) {
	for line := range strings.Lines(data) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		e := mountEntry{device: l[2], point: unescape(l[4]), fstype: unescape(r[0]), source: unescape(r[1])}
		_, minor, _ := strings.Cut(l[2], ":")
		e.minor, _ = strconv.Atoi(minor)
		entries = append(entries, e)
	}
	return entries
}

// unescape turns the octal escapes of /proc (space, tab, newline, backslash)
// into what they stand for.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
