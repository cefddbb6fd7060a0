package losetup

import (
	"os"
	"strings"
)

// ownMounts is the table of this process's own mount namespace.
const ownMounts = "/proc/self/mountinfo"

// MountTable reads the kernel's list of mounts in this process's mount namespace,
// in the order of mounting. It touches none of the mounts, so it is safe beside a
// file server that hangs.
func MountTable() []Mount { return readMounts(ownMounts) }

// Mount is one line of a mount table.
type Mount struct {
	Device  string // major:minor of the mounted file system
	Point   string // mount point, after symlinks
	Options string // of this mount: rw,nosuid,...
	Type    string // ext4, fuse.name, ...
	Source  string // what was mounted: /dev/loop3, ...
}

// FUSE says whether the mount is served by a process.
func (m Mount) FUSE() bool { return m.Type == "fuse" || strings.HasPrefix(m.Type, "fuse.") }

// readMounts reads a mount table in the order of mounting; what cannot be read is
// empty.
func readMounts(file string) []Mount {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var list []Mount
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /point opts [tags] - type source superopts
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 2 {
			continue
		}
		list = append(list, Mount{
			Device: left[2], Point: unescape(left[4]), Options: left[5],
			Type: right[0], Source: unescape(right[1]),
		})
	}
	return list
}

// MountAt returns what is mounted at point: the last mount there covers the others.
func MountAt(table []Mount, point string) (Mount, bool) {
	for i := len(table) - 1; i >= 0; i-- {
		if table[i].Point == point {
			return table[i], true
		}
	}
	return Mount{}, false
}

// unescape undoes the octal escapes of the table.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}
