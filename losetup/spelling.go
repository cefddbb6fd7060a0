package losetup

import (
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is the kernel's own limit of symlinks in a path.
const maxLinks = 40

// spelling resolves the symlinks of a path as the kernel would, without touching
// anything at or below a FUSE mount point: its server may hang, or be us. What
// does not exist is kept as it is.
func spelling(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	fuse := map[string]bool{}
	for _, m := range mounts("/proc/self/mountinfo") {
		if strings.HasPrefix(m.fsType, "fuse") {
			fuse[m.point] = true
		}
	}
	done, rest := "/", split(path)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == ".." {
			done = filepath.Dir(done)
			continue
		}
		next := filepath.Join(done, name)
		if fuse[next] {
			return filepath.Join(append([]string{next}, rest...)...), nil
		}
		target, err := os.Readlink(next)
		if err != nil || links == maxLinks {
			done = next // not a link, or not there
			continue
		}
		links++
		if filepath.IsAbs(target) {
			done = "/"
		}
		rest = append(split(target), rest...)
	}
	return done, nil
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// mount is one line of a mountinfo file.
type mount struct {
	device string // major:minor
	point  string
	fsType string
	source string
}

// mounts reads a mountinfo file; what cannot be read is empty. It touches none
// of the mounts.
func mounts(file string) []mount {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var list []mount
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /point opts [tags] - type source superopts
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		list = append(list, mount{device: left[2], point: unescape(left[4]), fsType: right[0], source: unescape(right[1])})
	}
	return list
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}
