//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestWrongInput: what cannot work ends with one clear line, with status 1 for a
// failure and 2 for bad usage, and leaves nothing behind.
func TestWrongInput(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 4*time.Minute)
	store := r.FileStore()
	r.Create(store, "there", "16M")
	m := r.Mount(store)
	mnt, file := r.Mkdir("empty"), r.Path("file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	full := r.Mkdir("full")
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	silent := "memcached+unix://" + r.Path("nobody-listens")
	before := r.Leftovers()

	for _, c := range []struct {
		name string
		code int // 0: 1 or 2
		args []string
	}{
		{"unknown verb", 2, []string{"explode"}},
		{"unknown flag", 2, []string{"mount", mnt, "--no-such-flag"}},
		{"server down, mount", 1, []string{"mount", mnt, "--store", silent}},
		{"server down, create", 1, []string{"volume", "create", "v", "--size", "1M", "--store", silent}},
		{"server down, up", 1, []string{"up", "v", "--size", "1G", "--at", mnt, "--store", silent}},
		{"bad store", 0, []string{"mount", mnt, "--store", "gopher://x"}},
		{"bad store path", 0, []string{"mount", mnt, "--store", "file://" + file}},
		{"bad size", 0, []string{"volume", "create", "v", "--size", "much", "--store", store}},
		{"negative size", 0, []string{"volume", "create", "v", "--size=-1G", "--store", store}},
		{"zero size", 0, []string{"volume", "create", "v", "--size", "0", "--store", store}},
		{"odd size", 0, []string{"volume", "create", "v", "--size", "4097", "--store", store}},
		{"huge size", 0, []string{"volume", "create", "v", "--size", "100000T", "--store", store}},
		{"bad name", 0, []string{"volume", "create", "../v", "--size", "1M", "--store", store}},
		{"empty name", 0, []string{"volume", "create", "", "--size", "1M", "--store", store}},
		{"long name", 0, []string{"volume", "create", strings.Repeat("n", 65), "--size", "1M", "--store", store}},
		{"exists", 1, []string{"volume", "create", "there", "--size", "1M", "--store", store}},
		{"missing volume, info", 1, []string{"volume", "info", "none", "--store", store}},
		{"missing volume, rm", 1, []string{"volume", "rm", "none", "--yes", "--store", store}},
		{"missing volume, where", 1, []string{"volume", "where", "none", "0", "--store", store}},
		{"missing volume, attach", 1, []string{"attach", "none", "--dir", m.Dir}},
		{"where beyond the end", 0, []string{"volume", "where", "there", "1G", "--store", store}},
		{"shrink unasked", 0, []string{"volume", "resize", "there", "8M", "--store", store}},
		{"mount point in use", 1, []string{"mount", m.Dir, "--store", store}},
		{"mount point missing", 1, []string{"mount", r.Path("nowhere"), "--store", store}},
		{"mount point a file", 1, []string{"mount", file, "--store", store}},
		{"umount of nothing", 1, []string{"umount", mnt}},
		{"detach of nothing", 1, []string{"detach", "/dev/loop4000"}},
		{"detach of no loop device", 0, []string{"detach", "/dev/null"}},
		{"wrong file system", 0, []string{"up", "v", "--size", "1G", "--fs", "ntfs9", "--at", mnt, "--store", store}},
		{"up on a file", 0, []string{"up", "v", "--size", "1G", "--at", file, "--store", store}},
		{"up with a bad name", 0, []string{"up", "a/b", "--size", "1G", "--at", mnt, "--store", store}},
		{"demo too small", 2, []string{"demo", "--size", "1M"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := r.Do(rig.Cmd{Args: append([]string{r.Bin}, c.args...), Limit: time.Minute})
			if c.code == 0 && res.Code != 1 && res.Code != 2 || c.code != 0 && res.Code != c.code {
				t.Errorf("status %d after %v, want %d\n%s", res.Code, res.Took.Round(time.Millisecond), c.code, res.All())
			}
			rig.OneLine(t, "stderr", res.Stderr)
			leftBehind(t, before, r.Leftovers)
		})
	}
	if ls := r.Kvbfs("volume", "ls", "--store", store); !strings.Contains(ls, "there") || strings.Count(strings.TrimSpace(ls), "\n") > 1 {
		t.Errorf("volumes after all that:\n%s", ls)
	}
	m.Umount()
}

// TestBusy: what is in use is not taken away.
func TestBusy(t *testing.T) {
	rig.RequireLoop(t)
	r := rig.New(t, 2*time.Minute)
	store := r.FileStore()
	r.Create(store, "v", "256M")
	m := r.Mount(store)
	dev := m.Attach("v")
	r.Mkfs("ext4", dev)
	dir := r.MountFS(dev, "ext4")
	for _, args := range [][]string{
		{"umount", m.Dir}, {"detach", dev}, {"volume", "rm", "v", "--yes", "--store", store},
	} {
		res := r.TryKvbfs(args...)
		if res.Code != 1 {
			t.Errorf("kvbfs %v while in use: status %d\n%s", args, res.Code, res.All())
		}
		rig.OneLine(t, args[0], res.Stderr)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("alive"), 0o644); err != nil {
		t.Errorf("the refusals did harm: %v", err)
	}
	r.UmountFS(dir)
	r.Fsck("ext4", dev)
	r.Detach(dev)
	m.Umount()
	nothingLeft(t, r)
}

// TestNoLoop: root with /dev/fuse and without loop devices, as in a container,
// is told so in one line.
func TestNoLoop(t *testing.T) {
	rig.RequireRoot(t)
	rig.RequireFUSE(t)
	rig.Require(t, "unshare")
	r := rig.New(t, time.Minute)
	res := r.Do(rig.Cmd{Args: []string{"unshare", "-m", "sh", "-c",
		`mount -t tmpfs none /dev && mknod -m 666 /dev/fuse c 10 229 && mknod -m 666 /dev/null c 1 3 && exec "$@"`, "sh",
		r.Bin, "up", "v", "--size", "1G", "--at", r.Mkdir("at"), "--store", r.FileStore()}})
	if res.Code != 1 || !strings.Contains(res.Stderr, "loop") {
		t.Errorf("up without loop devices: status %d\n%s", res.Code, res.All())
	}
	rig.OneLine(t, "up", res.Stderr)
	nothingLeft(t, r)
	if out := r.Kvbfs("volume", "ls", "--json", "--store", r.FileStore()); strings.TrimSpace(out) != "[]" {
		t.Errorf("an up that failed left a volume: %s", out)
	}
}

// TestNoFUSE: without /dev/fuse, one line says what to do about it.
func TestNoFUSE(t *testing.T) {
	rig.RequireRoot(t)
	rig.Require(t, "unshare")
	r := rig.New(t, time.Minute)
	mnt := r.Mkdir("m")
	for _, args := range [][]string{{"demo"}, {"mount", mnt, "--store", r.FileStore()}} {
		res := r.Do(rig.Cmd{Args: append([]string{"unshare", "-m", "sh", "-c",
			`mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"`, "sh", r.Bin}, args...)})
		if res.Code != 1 {
			t.Errorf("kvbfs %s without /dev/fuse: status %d\n%s", args[0], res.Code, res.All())
		}
		rig.OneLine(t, args[0], res.Stderr)
		if !strings.Contains(res.Stderr, "/dev/fuse") {
			t.Errorf("%s does not name /dev/fuse: %s", args[0], res.Stderr)
		}
		if args[0] == "demo" && !strings.Contains(res.Stderr, "--device /dev/fuse") {
			t.Errorf("demo does not name the container flag: %s", res.Stderr)
		}
	}
	nothingLeft(t, r)
}
