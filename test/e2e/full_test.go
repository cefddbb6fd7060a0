//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestFull is a user who does not think of it: `up` on a memcached that is
// smaller than the volume. Writers are told that there is no space, what was
// there stays, the file system lives and can still be worked with, and removing
// files and trimming makes room again.
func TestFull(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fstrim")
	for _, c := range []struct {
		fs   string
		mb   int // of the server: the log of XFS takes 64
		size string
	}{{"ext4", 128, "10G"}, {"xfs", 448, "2G"}} {
		t.Run(c.fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+c.fs)
			r := rig.New(t, 4*time.Minute)
			srv := r.Memcached(c.mb)
			f := &full{Rig: r, srv: srv, fs: c.fs, dir: r.Path("at")}
			f.start("--size", c.size, "--fs", c.fs)
			r.Run("cp", "-a", goroot(t, r)+"/src/fmt", filepath.Join(f.dir, "old"))
			r.Run("sync", "-f", f.dir)
			f.want = rig.ReadTree(t, filepath.Join(f.dir, "old"))
			for round := range 2 {
				f.fill(c.mb)
				f.work(round)
				// XFS cannot replay its log onto a full store: its mount fails with ENOSPC.
				if round == 1 && c.fs == "ext4" {
					f.crash()
				}
				f.makeRoom()
			}
			f.end()
		})
	}
}

// full is the world of TestFull.
type full struct {
	*rig.Rig
	srv     *rig.Memcached
	fs, dir string
	up      struct {
		Dir    string `json:"dir"`
		Device string `json:"device"`
	}
	want rig.Manifest
}

// start runs up.
func (f *full) start(args ...string) {
	f.T.Helper()
	args = append(args, f.CacheArgs()...)
	out := f.Run(append([]string{f.Bin, "up", "disk", "--store", f.srv.URL(), "--at", f.dir, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &f.up); err != nil || f.up.Device == "" {
		f.T.Fatalf("up --json printed %q (%v)", out, err)
	}
}

// fill writes more than fits, through the page cache and directly.
func (f *full) fill(mb int) {
	t := f.T
	t.Helper()
	for _, how := range [][]string{{"conv=fsync"}, {"oflag=direct"}} {
		args := append([]string{"dd", "if=/dev/urandom", "of=" + filepath.Join(f.dir, "big-"+how[0]), "bs=1M", fmt.Sprint("count=", mb)}, how...)
		if res := f.Try(args...); res.Code == 0 || !strings.Contains(res.Stderr, "No space left on device") {
			t.Fatalf("%s of %d MiB: status %d, want ENOSPC\n%s", how[0], mb, res.Code, res.Stderr)
		}
	}
	// The first one after an error of the page cache may be told of it.
	if res := f.Try("sync", "-f", f.dir); res.Code != 0 && !strings.Contains(res.Stderr, "No space left on device") {
		t.Fatalf("sync: %s", res.Stderr)
	}
}

// work does what needs no space for data, more than the journal has room for.
func (f *full) work(round int) {
	t := f.T
	t.Helper()
	dir := filepath.Join(f.dir, fmt.Sprint("made when full", round))
	f.Run("mkdir", dir)
	for i := range 300 {
		name := filepath.Join(dir, fmt.Sprintf("%d-%s", i, strings.Repeat("n", 100)))
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 {
			f.Run("sync", "-f", f.dir)
		}
	}
	f.log(dir)
	f.writable()
	f.check()
}

// crash kills the daemon while the journal holds what has no place yet: it is
// replayed on the full store.
func (f *full) crash() {
	t := f.T
	t.Helper()
	for i := range 8 {
		f.Run("mkdir", filepath.Join(f.dir, fmt.Sprint("in the journal only", i)))
	}
	f.Run("sync", "-f", f.dir)
	if err := syscall.Kill(f.Daemon(f.up.Dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.writable()
	f.check()
	if dirs, err := filepath.Glob(filepath.Join(f.dir, "in the journal only*")); len(dirs) != 8 || err != nil {
		t.Fatalf("after a crash there are %v, %v", dirs, err)
	}
}

// log makes the journal go round: 1000 small transactions.
func (f *full) log(dir string) {
	t := f.T
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range 1000 {
		when := time.Unix(int64(i), 0)
		if err := os.Chtimes(dir, when, when); err != nil {
			t.Fatal(err)
		}
		if err := unix.Syncfs(int(d.Fd())); err != nil {
			t.Fatal(err)
		}
	}
}

// writable says that the file system did not give up.
func (f *full) writable() {
	t := f.T
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if w := strings.Fields(line); w[1] == f.dir {
			opts := strings.Split(w[3], ",")
			if opts[0] != "rw" || slices.Contains(opts, "emergency_ro") || slices.Contains(opts, "shutdown") {
				t.Fatalf("mounted %s", w[3])
			}
			return
		}
	}
	t.Fatalf("%s is not mounted", f.dir)
}

// check reads the old data from the store.
func (f *full) check() {
	f.T.Helper()
	rig.DropCached(f.T, filepath.Join(f.dir, "old"))
	rig.SameTree(f.T, f.want, rig.ReadTree(f.T, filepath.Join(f.dir, "old")))
}

// makeRoom removes the big files, and writes again.
func (f *full) makeRoom() {
	t := f.T
	t.Helper()
	files, err := filepath.Glob(filepath.Join(f.dir, "big-*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	before := f.srv.Stat("curr_items")
	f.Run(append([]string{"rm"}, files...)...)
	f.Run("sync", "-f", f.dir)
	rig.Eventually(t, 2*time.Minute, "trimming frees items", func() bool {
		f.Run("fstrim", f.dir) // again: what XFS has not committed yet is not trimmed
		return f.srv.Stat("curr_items") < before/2
	})
	for _, how := range []string{"oflag=direct", "conv=fsync"} {
		f.Run("dd", "if=/dev/urandom", "of="+filepath.Join(f.dir, "again"), "bs=1M", "count=20", how)
	}
	f.Run("rm", filepath.Join(f.dir, "again"))
	f.writable()
}

func (f *full) end() {
	f.T.Helper()
	f.UmountFS(f.dir)
	f.Fsck(f.fs, f.up.Device)
	f.dir = f.MountFS(f.up.Device, f.fs)
	f.check()
	f.UmountFS(f.dir)
	f.Run(f.Bin, "down", "disk")
}

// TestFullByHand is the same without `up`: a file system that was made and
// mounted by hand, and has been in use for a while.
func TestFullByHand(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fstrim")
	r := rig.New(t, 6*time.Minute)
	srv := r.Memcached(64)
	r.Create(srv.URL(), "disk", "1G")
	m := r.Mount(srv.URL())
	dev := m.Attach("disk")
	r.Run("mkfs.ext4", "-q", "-F", "-J", "size=4", "-m", "0", dev)
	dir := r.MountFS(dev, "ext4")
	r.Run("cp", "-a", goroot(t, r)+"/src/fmt", filepath.Join(dir, "old"))
	// Nothing reserved room here. The file's extents are there before the store is full, and the journal was
	// once round: afterwards both are overwrites, as in any file system with a past.
	// (A journal that was never once round needs new blocks, and ext4 gives up
	// when it cannot have them.)
	r.Run("fallocate", "-l", "200M", filepath.Join(dir, "big"))
	for i := range 600 {
		name := filepath.Join(dir, fmt.Sprintf("turn%d", i%50))
		if err := os.WriteFile(name, []byte(strings.Repeat("x", 100+i%300)), 0o644); err != nil {
			t.Fatal(err)
		}
		r.Run("sync", "-f", dir)
	}
	r.Run("sync", "-f", dir)
	want := rig.ReadTree(t, filepath.Join(dir, "old"))

	res := r.Try("dd", "if=/dev/urandom", "of="+filepath.Join(dir, "big"), "bs=1M", "count=200", "oflag=direct", "conv=notrunc")
	if res.Code == 0 || !strings.Contains(res.Stderr, "No space left on device") {
		t.Fatalf("200 MiB into 64 MiB: status %d, want ENOSPC\n%s", res.Code, res.Stderr)
	}
	// Overwriting in place and touching need no new block, only the journal.
	r.Run("dd", "if=/dev/zero", "of="+filepath.Join(dir, "turn0"), "bs=10", "count=1", "conv=notrunc,fsync")
	r.Run("touch", filepath.Join(dir, "turn1"))
	r.Run("sync", "-f", dir)
	rig.DropCached(t, filepath.Join(dir, "old"))
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "old")))

	r.Run("rm", filepath.Join(dir, "big"))
	r.Run("sync", "-f", dir)
	full := srv.Stat("curr_items")
	r.Run("fstrim", dir)
	rig.Eventually(t, 2*time.Minute, "trimming frees items", func() bool { return srv.Stat("curr_items") < full/2 })
	r.Run("dd", "if=/dev/urandom", "of="+filepath.Join(dir, "again"), "bs=1M", "count=20", "oflag=direct")
	r.UmountFS(dir)
	r.Fsck("ext4", dev)
	dir = r.MountFS(dev, "ext4")
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(dir, "old")))
	r.UmountFS(dir)
	r.Detach(dev)
	m.Umount()
}
