//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// eachStore runs f with a world and a store of each kind. The memcached has mb
// megabytes.
func eachStore(t *testing.T, limit time.Duration, mb int, f func(t *testing.T, r *rig.Rig, store string)) {
	t.Run("file", func(t *testing.T) {
		r := rig.New(t, limit)
		f(t, r, r.FileStore())
	})
	t.Run("memcached", func(t *testing.T) {
		rig.Require(t, "memcached")
		r := rig.New(t, limit)
		f(t, r, r.Memcached(mb).URL())
	})
}

// everyStore is eachStore with Redis.
func everyStore(t *testing.T, limit time.Duration, mb int, f func(t *testing.T, r *rig.Rig, store string)) {
	eachStore(t, limit, mb, f)
	t.Run("redis", func(t *testing.T) {
		r := rig.New(t, limit)
		f(t, r, redistest.Start(t, redistest.MemoryMB(mb)).URL())
	})
}

// goroot is the source tree that the tests copy.
func goroot(t *testing.T, r *rig.Rig) string {
	t.Helper()
	rig.Require(t, "go")
	return strings.TrimSpace(r.Run("go", "env", "GOROOT"))
}

// TestTree copies a real tree onto a disk made by `up`, takes everything down
// but the store, brings it up again, and compares.
func TestTree(t *testing.T) {
	rig.RequireLoop(t)
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+fs)
			stores := eachStore
			if fs == "ext4" {
				stores = everyStore
			}
			stores(t, 10*time.Minute, 1024, func(t *testing.T, r *rig.Rig, store string) {
				tree(t, r, store, fs)
			})
		})
	}
}

func tree(t *testing.T, r *rig.Rig, store, fs string) {
	src := filepath.Join(goroot(t, r), "src")
	if fs == "btrfs" || !strings.HasPrefix(store, "memcached") {
		src = filepath.Join(src, "net")
	}
	at := r.Mkdir("at")
	up := []string{"up", "disk", "--size", "4G", "--fs", fs, "--at", at, "--store", store}
	r.Kvbfs(up...)
	r.Run("cp", "-a", src, filepath.Join(at, "src"))
	want := rig.ReadTree(t, src)
	if len(want) < 300 {
		t.Fatalf("only %d files in %s: not much of a test", len(want), src)
	}
	if fs == "ext4" {
		work(t, r, at)
	}
	r.Kvbfs("down", "disk")
	nothingLeft(t, r)

	r.Kvbfs(up...)
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(at, "src")))
	r.Kvbfs("down", "disk")

	m := r.Mount(store)
	dev := m.Attach("disk")
	r.Fsck(fs, dev)
	r.Detach(dev)
	m.Umount()
}

// work does what people do in a directory: build and clone.
func work(t *testing.T, r *rig.Rig, at string) {
	rig.Require(t, "go", "git")
	dir := filepath.Join(at, "hello")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module hello\n\ngo 1.21\n")
	write("main.go", "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"built on a disk of blocks\") }\n")
	r.Must(rig.Cmd{Args: []string{"go", "build", "-o", "hello", "."}, Dir: dir,
		Env: []string{"GOCACHE=" + filepath.Join(at, "gocache"), "GOFLAGS=-mod=mod", "GOWORK=off"}})
	if out := r.Run(filepath.Join(dir, "hello")); !strings.Contains(out, "disk of blocks") {
		t.Errorf("the program that was built says %q", out)
	}
	git := func(args ...string) {
		r.Run(append([]string{"git", "-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
	}
	git("init", "-q", ".")
	git("add", "go.mod", "main.go")
	git("commit", "-q", "-m", "first")
	clone := filepath.Join(at, "clone")
	r.Run("git", "clone", "-q", dir, clone)
	r.Run("git", "-C", clone, "fsck", "--strict")
	if _, err := os.Stat(filepath.Join(clone, "main.go")); err != nil {
		t.Error(err)
	}
}
