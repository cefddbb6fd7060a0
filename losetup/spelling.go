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
	for _, m := range MountTable() {
		if m.FUSE() {
			fuse[m.Point] = true
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
