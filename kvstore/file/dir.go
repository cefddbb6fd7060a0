package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

const (
	marker     = "KVBFS"
	markerText = "kvbfs file store, version 1\n"
	layerDir   = "layers"
	recordDir  = "records"
	lockName   = "lock"
	tempName   = ".new"
)

// harmless are names that a directory may hold without being a store: what mkfs
// makes, what kvbfs itself keeps beside a store, and what a crash in the midst of
// making a store leaves.
var harmless = map[string]bool{"lost+found": true, "state": true, "store": true, lockName: true, tempName: true}

// checkDir refuses a directory that is not ours to use. One that does not exist
// is fine.
func checkDir(dir string) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("file store %s: %s: %w", dir, fmt.Sprintf(format, args...), kvstore.ErrInvalid)
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("file store: %w", err)
	case !info.IsDir():
		return refuse("not a directory")
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return refuse("belongs to user %d and you are %d; use a directory of your own, or run as its owner", st.Uid, os.Geteuid())
	}
	stranger := ""
	for {
		text, err := os.ReadFile(filepath.Join(dir, marker))
		switch {
		case err == nil && string(text) == markerText:
			return nil
		case err == nil:
			return refuse("made by another version of kvbfs (%s says %.40q)", marker, text)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("file store: %w", err)
		}
		if stranger != "" {
			return refuse("holds other things (%s) and no store; name an empty or new directory", stranger)
		}
		if stranger, err = firstStranger(dir); err != nil {
			return fmt.Errorf("file store: %w", err)
		}
		if stranger == "" {
			return nil
		}
		// Or somebody else makes a store here at this moment: the marker comes first.
	}
}

// firstStranger returns the first name in a directory that is not harmless, if any.
func firstStranger(dir string) (string, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range names {
		if !harmless[e.Name()] {
			return e.Name(), nil
		}
	}
	return "", nil
}

// makeTop makes the store's directory, so that the lock file can be in it. It
// checks again whose it is: much time may have passed since Open.
func (s *Store) makeTop() error {
	if err := checkDir(s.dir); err != nil {
		return err
	}
	return s.mkdir(s.dir)
}

// makeInside makes what a store consists of. Called under the lock.
func (s *Store) makeInside() error {
	if _, err := os.Stat(filepath.Join(s.dir, recordDir)); err == nil {
		return nil // made last, so all is there
	}
	if err := s.replaceFile(s.dir, marker, []byte(markerText)); err != nil {
		return err
	}
	if err := s.mkdir(filepath.Join(s.dir, layerDir)); err != nil {
		return err
	}
	return s.mkdir(filepath.Join(s.dir, recordDir))
}

// mkdir is os.MkdirAll that makes each new name stable.
func (s *Store) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if err := s.mkdir(filepath.Dir(dir)); err != nil {
			return err
		}
		return s.mkdir(dir)
	case err != nil:
		return err
	}
	return s.syncDir(filepath.Dir(dir))
}

// replaceFile writes a file so that a crash leaves the old or the new one. Its
// temporary name is fixed: the lock allows one writer, and a crash leaves at
// most one.
func (s *Store) replaceFile(dir, name string, data []byte) error {
	temp := filepath.Join(dir, tempName)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if !s.opt.NoSync {
		err = errors.Join(err, f.Sync())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(temp) // as good as we can; the next writer truncates it
		return err
	}
	return s.syncDir(dir)
}

// statfs asks the file system of dir, or of the nearest directory above it that
// exists.
func statfs(dir string) (st unix.Statfs_t, err error) {
	for {
		for err = unix.Statfs(dir, &st); err == unix.EINTR; {
			err = unix.Statfs(dir, &st)
		}
		if err != unix.ENOENT || filepath.Dir(dir) == dir {
			return st, err
		}
		dir = filepath.Dir(dir)
	}
}

// inMemory: what is stored there ends with the machine's uptime.
func inMemory(st unix.Statfs_t) bool {
	switch uint32(st.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return true
	}
	return false
}

// onNetwork: other machines may reach it.
func onNetwork(st unix.Statfs_t) bool {
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.V9FS_MAGIC:
		return true
	}
	return false
}

// quote makes a path one word of a shell command.
func quote(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }
