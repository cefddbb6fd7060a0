package stack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// user returns whose places are used: our user's, except in a user namespace in
// which nobody but we exist (unshare -Ur): there root is an ordinary user, root's
// directories are out of reach, and the user finds what it made outside.
func user() int {
	uid := os.Geteuid()
	if uid != 0 {
		return uid
	}
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return uid
	}
	return outerUser(string(m))
}

// outerUser returns which user root of a namespace with this map is outside, if
// it is the only one; else 0.
func outerUser(uidMap string) int {
	var inside, outside, count int
	if n, err := fmt.Sscan(uidMap, &inside, &outside, &count); n != 3 || err != nil || inside != 0 || count != 1 {
		return 0
	}
	return outside
}

// DefaultURL returns the store to use when --store is not given and where that
// came from ("KVBFS_STORE" or "default"): KVBFS_STORE, else the embedded store
// file:///var/lib/kvbfs/store as root, below the state directory else.
func DefaultURL() (url, source string) {
	if v := os.Getenv("KVBFS_STORE"); v != "" {
		return v, "KVBFS_STORE"
	}
	if user() == 0 {
		return "file:///var/lib/kvbfs/store", "default"
	}
	base, err := userStateDir()
	if err != nil {
		return "", "default"
	}
	return "file://" + filepath.Join(base, "store"), "default"
}

// RuntimeDir is /run/kvbfs as root, else $XDG_RUNTIME_DIR/kvbfs, else a 0700
// directory below the temporary one; KVBFS_RUNTIME_DIR overrides. Made if absent
// with mode 0700, refused if somebody else owns it.
func RuntimeDir() (string, error) {
	dir := os.Getenv("KVBFS_RUNTIME_DIR")
	switch {
	case dir != "":
	case user() == 0:
		dir = "/run/kvbfs"
	case os.Getenv("XDG_RUNTIME_DIR") != "":
		dir = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "kvbfs")
	default:
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("kvbfs-%d", user()))
	}
	return private(dir, "KVBFS_RUNTIME_DIR")
}

// StateDir is /var/lib/kvbfs/state as root, else $XDG_STATE_HOME/kvbfs
// (~/.local/state/kvbfs); KVBFS_STATE_DIR overrides. Made as RuntimeDir is.
func StateDir() (string, error) {
	dir := os.Getenv("KVBFS_STATE_DIR")
	switch {
	case dir != "":
	case user() == 0:
		dir = "/var/lib/kvbfs/state"
	default:
		var err error
		if dir, err = userStateDir(); err != nil {
			return "", err
		}
	}
	return private(dir, "KVBFS_STATE_DIR")
}

func userStateDir() (string, error) {
	if v := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(v) {
		return filepath.Join(v, "kvbfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", inputf("no home directory to keep state in: set HOME, XDG_STATE_HOME or KVBFS_STATE_DIR")
	}
	return filepath.Join(home, ".local/state/kvbfs"), nil
}

// private makes dir with mode 0700, or checks that it is a directory of ours that
// nobody else may write to: what lies in it is trusted (sockets, sentinels).
func private(dir, variable string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", inputf("%s is not an absolute path: %q", variable, dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("%w; %s names another place", err, variable)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("%w; %s names another place", err, variable)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return "", fmt.Errorf("%s is not a directory; %s names another place", dir, variable)
	case ok && int(st.Uid) != os.Geteuid():
		return "", fmt.Errorf("%s belongs to user %d, not to you; %s names another place", dir, st.Uid, variable)
	case fi.Mode().Perm()&0o022 != 0:
		return "", fmt.Errorf("others may write to %s: chmod 700 %s", dir, dir)
	}
	return filepath.Clean(dir), nil
}
