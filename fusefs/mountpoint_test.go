package fusefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseMounts(t *testing.T) {
	const info = `22 1 0:21 / /proc rw shared:5 - proc proc rw
42 27 0:39 / /mnt/with\040space\134x rw,nosuid - fuse.kvbfs memcached://a,b:1/p rw,user_id=0
short line
`
	got := parseMounts(info)
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	want := mountEntry{minor: 39, device: "0:39", point: `/mnt/with space\x`, fstype: fsType, source: "memcached://a,b:1/p"}
	if got[1] != want {
		t.Errorf("got %+v, want %+v", got[1], want)
	}
}

func TestCheckMountPoint(t *testing.T) {
	tmp, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir, file, link := filepath.Join(tmp, "dir"), filepath.Join(tmp, "file"), filepath.Join(tmp, "link")
	open := filepath.Join(tmp, "open")
	for _, err := range []error{
		os.Mkdir(dir, 0o700), os.WriteFile(file, nil, 0o600), os.Symlink(dir, link),
		os.MkdirAll(filepath.Join(open, "mnt"), 0o700), os.Chmod(open, 0o777),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := checkMountPoint(dir + "/../dir/"); err != nil || got != dir {
		t.Errorf("a good one: %q, %v", got, err)
	}
	if got, err := checkMountPoint("/dev/fd/7"); err != nil || got != "/dev/fd/7" {
		t.Errorf("a passed descriptor: %q, %v", got, err)
	}
	bad := map[string]string{"/": "cannot be one", filepath.Join(tmp, "absent"): "mkdir -p", file: "not a directory"}
	if realRoot() {
		bad[link] = "symbolic link"
		bad[filepath.Join(open, "mnt")] = "everybody may write"
	}
	for path, why := range bad {
		if _, err := checkMountPoint(path); !errors.Is(err, ErrMountPoint) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: got %v, want %q", path, err, why)
		}
	}
}

func TestInflight(t *testing.T) {
	var f inflight
	f.init()
	a, b := f.begin(), f.begin()
	if n, _ := f.look(); n != 2 || a == b {
		t.Errorf("%d in flight, slots %d and %d", n, a, b)
	}
	f.end(a)
	f.end(b)
	f.end(-1)
	if n, oldest := f.look(); n != 0 || oldest != 0 {
		t.Errorf("%d in flight, oldest %v", n, oldest)
	}
}

func TestLimiter(t *testing.T) {
	lines := 0
	l := newLimiter(func(string, ...any) { lines++ })
	for range 1000 {
		l.log("again")
	}
	if lines == 0 || lines > 2*logBurst {
		t.Errorf("%d lines of 1000 passed", lines)
	}
	l.next.Store(clock() - int64(time.Hour))
	before := lines
	l.log("later")
	if lines != before+2 { // the line, and how many were left out
		t.Errorf("%d lines after the pause", lines-before)
	}
}
