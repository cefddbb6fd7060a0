package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// Bounds of the tree: enough that the copy shows something, little enough that
// it takes seconds on two cores, twice.
const (
	maxTreeBytes = 64 << 20
	maxFileBytes = 4 << 20
	minTreeFiles = 200
	minTreeBytes = 2 << 20
)

// tree is what is copied: a staged copy of something real.
type tree struct {
	from  string // where it came from
	dir   string // the staged copy
	files int
	bytes int64
	sums  map[string][sha256.Size]byte // by path below dir
}

// stage copies a bounded part of the first place that has enough into dir, of at
// most so many files. On a
// machine that has nothing it makes files up.
func stage(ctx context.Context, dir string, files int) (tree, error) {
	for _, from := range treePlaces() {
		t, err := stageFrom(ctx, from, dir, files)
		if err != nil || t.files >= minTreeFiles && t.bytes >= minTreeBytes {
			return t, err
		}
		if err := os.RemoveAll(dir); err != nil {
			return t, err
		}
	}
	return invent(dir, min(files, 500))
}

func treePlaces() []string {
	places := []string{"/usr/local/go/src", "/usr/lib/go/src", "/usr/share", "/usr/lib", "/lib", "/etc"}
	if root := os.Getenv("GOROOT"); root != "" {
		places = append([]string{filepath.Join(root, "src")}, places...)
	}
	return places
}

var errEnough = errors.New("enough")

func stageFrom(ctx context.Context, from, dir string, files int) (tree, error) {
	t := tree{from: from, dir: dir, sums: map[string][sha256.Size]byte{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return t, err
	}
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return t, nil // not there: an empty tree
	}
	err = filepath.WalkDir(real, func(p string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if err != nil || info.Size() > maxFileBytes {
			return nil
		}
		if t.files == files || t.bytes+info.Size() > maxTreeBytes {
			return errEnough
		}
		rel, err := filepath.Rel(real, p)
		if err != nil || strings.ContainsAny(rel, "\n\"\\") {
			return nil
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return nil // not ours to read
		}
		return t.add(rel, data)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return t, err
}

func (t *tree) add(rel string, data []byte) error {
	to := filepath.Join(t.dir, rel)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	t.sums[rel] = sha256.Sum256(data)
	t.files++
	t.bytes += int64(len(data))
	return os.WriteFile(to, data, 0o644)
}

// invent makes files of random sizes and content.
func invent(dir string, files int) (tree, error) {
	t := tree{from: "random data", dir: dir, sums: map[string][sha256.Size]byte{}}
	rnd := rand.NewChaCha8([32]byte{})
	size := rand.New(rnd)
	for i := range files {
		data := make([]byte, size.IntN(64<<10))
		rnd.Read(data)
		if err := t.add(fmt.Sprintf("%02d/%03d", i%16, i), data); err != nil {
			return t, err
		}
	}
	return t, nil
}

// copyTo copies the staged tree into dir.
func (t *tree) copyTo(ctx context.Context, dir string) error {
	for _, rel := range t.sorted() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		to := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		data, err := os.ReadFile(filepath.Join(t.dir, rel))
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// check compares every file below dir with the tree.
func (t *tree) check(ctx context.Context, dir string) error {
	buf := make([]byte, 1<<20)
	for _, rel := range t.sorted() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f, err := os.Open(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.CopyBuffer(h, struct{ io.Reader }{f}, buf)
		f.Close()
		if err != nil {
			return err
		}
		if want := t.sums[rel]; [sha256.Size]byte(h.Sum(nil)) != want {
			return fmt.Errorf("%s has changed: its checksum is %x, it was %x", rel, h.Sum(nil), want)
		}
	}
	return nil
}

func (t *tree) sorted() []string {
	names := make([]string, 0, len(t.sums))
	for rel := range t.sums {
		names = append(names, rel)
	}
	sort.Strings(names)
	return names
}
