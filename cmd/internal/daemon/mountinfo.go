package daemon

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/losetup"
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
func MountAt(dir string) (FUSE, bool) {
	m, ok := losetup.MountAt(losetup.MountTable(), dir)
	if !ok {
		return FUSE{}, false
	}
	out := FUSE{Dir: m.Point, Type: m.Type, Source: m.Source}
	if _, minor, found := strings.Cut(m.Device, ":"); found && m.FUSE() {
		out.Connection = "/sys/fs/fuse/connections/" + minor
	}
	return out, true
}

// KVBFSMounts lists the mount points of kvbfs, served or not.
func KVBFSMounts() []string {
	var out []string
	for _, m := range losetup.MountTable() {
		if m.Type == "fuse.kvbfs" {
			out = append(out, m.Point)
		}
	}
	return out
}

// FUSEMount is MountAt for FUSE mounts only.
func FUSEMount(dir string) (FUSE, bool) {
	m, ok := MountAt(dir)
	return m, ok && strings.HasPrefix(m.Type, "fuse") && m.Type != "fusectl"
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
		return fusefs.Unserved(err)
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
