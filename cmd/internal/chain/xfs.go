package chain

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// XFS does not mount two file systems of one UUID at a time: their journals and
// buffers would be taken for each other's. The kernel says "invalid argument" and
// why in its log only. After a crash the other one is most often the dead file
// system itself, in a mount namespace (a container, a service) that was made while
// it was mounted and that nobody here sees.

// xfsMount is a mounted XFS with the UUID of the one that should be mounted.
type xfsMount struct {
	device string // loop3
	point  string // as that namespace names it; "" if no process was found
	pid    int
	comm   string
	here   bool // in our own mount namespace
	dead   bool // its device cannot be read
}

func (m xfsMount) String() string {
	s := "/dev/" + m.device
	switch {
	case m.point == "":
		s += " (mounted where no process can be seen)"
	case m.here:
		s += " on " + m.point
	default:
		s += fmt.Sprintf(" on %s in the mount namespace of process %d (%s)", m.point, m.pid, m.comm)
	}
	if m.dead {
		s += ", which is dead"
	}
	return s
}

// xfsRefused explains why XFS on device was not mounted on at; nil if no other file
// system is to blame. sys and proc are where these are mounted.
func xfsRefused(device, at, sys, proc string) error {
	others := xfsTwins(device, sys, proc)
	if len(others) == 0 {
		return nil
	}
	m := others[0]
	what := fmt.Sprintf("mount %s on %s: XFS mounts no file system twice, and one with the same UUID is still mounted: %v", device, at, m)
	if len(others) > 1 {
		what += fmt.Sprintf(" and %d more", len(others)-1)
	}
	do := "unmount it"
	if m.pid > 0 && !m.here {
		do = fmt.Sprintf("end process %d, or `nsenter -t %d -m umount -l %s`", m.pid, m.pid, m.point)
	} else if m.point != "" {
		do = fmt.Sprintf("`umount %s`", m.point)
	}
	without := "`mount -o nouuid` mounts it beside the other, which is right for a copy, and for the same volume only if nobody writes to the other any more"
	if m.dead {
		without = "or attach the volume and mount it with -o nouuid: the dead one writes nothing any more, and its errors may be logged until it is unmounted"
	}
	return fmt.Errorf("%s: %s, and run up again; %s", what, do, without)
}

// xfsTwins finds mounted XFS with the UUID of the one on device. One that cannot be
// read is one if it is a loop device of an image of the same name.
func xfsTwins(device, sys, proc string) (found []xfsMount) {
	uuid, err := xfsUUID(device)
	if err != nil {
		return nil
	}
	own := filepath.Base(device)
	dirs, _ := os.ReadDir(filepath.Join(sys, "fs/xfs"))
	for _, d := range dirs {
		number, err := os.ReadFile(filepath.Join(sys, "class/block", d.Name(), "dev"))
		if err != nil || d.Name() == own {
			continue // not a device, or ours
		}
		other, err := xfsUUID(filepath.Join(filepath.Dir(device), d.Name()))
		dead := err != nil
		if dead && (imageOf(sys, own) == "" || imageOf(sys, own) != imageOf(sys, d.Name())) || !dead && other != uuid {
			continue
		}
		m := xfsMount{device: d.Name(), dead: dead}
		m.locate(strings.TrimSpace(string(number)), proc)
		found = append(found, m)
	}
	return found
}

// xfsUUID reads the UUID of the superblock.
func xfsUUID(device string) (uuid [16]byte, err error) {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return uuid, err
	}
	defer f.Close()
	// A file system that is shut down still has its superblock in the page cache:
	// what counts is what the device gives now.
	_ = unix.Fadvise(int(f.Fd()), 0, probeBlock, unix.FADV_DONTNEED)
	head := make([]byte, 48)
	if _, err := f.ReadAt(head, 0); err != nil {
		return uuid, err
	}
	if !bytes.HasPrefix(head, []byte("XFSB")) {
		return uuid, fmt.Errorf("%s holds no XFS", device)
	}
	return [16]byte(head[32:48]), nil
}

// imageOf is the name of the image behind a loop device, "" if it is none.
func imageOf(sys, name string) string {
	text, err := os.ReadFile(filepath.Join(sys, "class/block", name, "loop/backing_file"))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)"))
}

// locate finds where a device is mounted, in our mount namespace or in that of any
// process.
func (m *xfsMount) locate(number, proc string) {
	self, _ := os.Readlink(filepath.Join(proc, "self/ns/mnt"))
	if m.point = mountedAt(filepath.Join(proc, "self/mountinfo"), number); m.point != "" {
		m.here = true
		return
	}
	seen := []string{self}
	all, _ := os.ReadDir(proc)
	for _, p := range all {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, p.Name())
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || slices.Contains(seen, ns) {
			continue
		}
		seen = append(seen, ns)
		if point := mountedAt(filepath.Join(dir, "mountinfo"), number); point != "" {
			comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
			m.point, m.pid, m.comm = point, pid, strings.TrimSpace(string(comm))
			return
		}
	}
}

// mountedAt finds the mount point of a device (major:minor) in a mountinfo file.
func mountedAt(file, number string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[2] == number {
			return f[4]
		}
	}
	return ""
}
