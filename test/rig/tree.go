package rig

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Manifest maps each file below a directory to what it is: kind, permissions
// and the checksum of its content or the target of the link.
type Manifest map[string]string

// ReadTree reads the manifest of a tree. lost+found is left out.
func ReadTree(t testing.TB, dir string) Manifest {
	t.Helper()
	m := Manifest{}
	buf := make([]byte, 1<<20)
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if d.IsDir() && d.Name() == "lost+found" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case rel == ".":
		case d.IsDir():
			m[rel] = fmt.Sprintf("dir %v", info.Mode().Perm())
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			m[rel] = "link " + to
		case info.Mode().IsRegular():
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
			f.Close()
			if err != nil {
				return err
			}
			m[rel] = fmt.Sprintf("file %v %x", info.Mode().Perm(), h.Sum(nil))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("reading %s: %v", dir, err)
	}
	return m
}

// DropCached makes the kernel forget the content of the files below a directory, so
// that it is read from the disk again. They must be stable. Unlike drop_caches it
// concerns nobody else.
func DropCached(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		t.Fatalf("dropping what is cached of %s: %v", dir, err)
	}
}

// SameTree fails unless both manifests are equal, and names what differs.
func SameTree(t testing.TB, want, got Manifest) {
	t.Helper()
	shown := 0
	differ := func(format string, args ...any) {
		if shown++; shown <= 10 {
			t.Errorf(format, args...)
		}
	}
	for p, w := range want {
		if g, ok := got[p]; !ok {
			differ("%s is missing", p)
		} else if g != w {
			differ("%s is %s, want %s", p, g, w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			differ("%s was not there before", p)
		}
	}
	if shown > 10 {
		t.Errorf("... and %d more differences", shown-10)
	}
}
