package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
)

// TestUmountOfWhatNoDaemonServes: by force too, only mounts of kvbfs are taken off,
// and only a dead one is called dead.
func TestUmountOfWhatNoDaemonServes(t *testing.T) {
	if os.Geteuid() != 0 {
		cannotMount(t, errors.New("mounting needs root"))
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		kind        string
		dead, force bool
		want        string // of the error, if the mount stays
		says        string
	}{
		{"fuse.other", false, true, "is not mounted by kvbfs", ""},
		{"fuse.other", true, true, "is not mounted by kvbfs", ""},
		{"fuse.other", true, false, "is not mounted by kvbfs", ""},
		{"fuse", false, true, "is not mounted by kvbfs", ""},
		{"fuse", true, false, "", "dead mount is taken off"},
		{"fuse.kvbfs", false, true, "", "taken off by force"},
		{"fuse.kvbfs", true, true, "", "dead mount is taken off"},
		{"fuse.kvbfs", true, false, "", "dead mount is taken off"},
	} {
		what := fmt.Sprintf("%s, dead %v, force %v", c.kind, c.dead, c.force)
		dir := filepath.Join(root, fmt.Sprint(i))
		server := mountUnanswered(t, dir, c.kind)
		if c.dead {
			unix.Close(server)
		}
		out, err := stdoutOf(t, func() error { return (&umountCmd{Force: c.force}).withoutDaemon(dir) })
		_, mounted := daemon.FUSEMount(dir)
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !mounted):
			t.Errorf("%s: %v, mounted %v; want %q", what, err, mounted, c.want)
		case c.want == "" && (err != nil || mounted || !strings.Contains(out, c.says)):
			t.Errorf("%s: %v, mounted %v, it says %q", what, err, mounted, out)
		}
		if !c.dead {
			unix.Close(server)
		}
	}
}

// mountUnanswered mounts a FUSE connection on dir, of which nobody answers a request;
// it is dead when the descriptor is closed.
func mountUnanswered(t *testing.T, dir, kind string) (server int) {
	t.Helper()
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		cannotMount(t, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("test", dir, kind, unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		unix.Close(server)
		cannotMount(t, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	return server
}

// cannotMount skips the test, but fails it if the environment has CI=true.
func cannotMount(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%v, and CI=true must not skip", why)
	}
	t.Skip(why)
}

// stdoutOf returns what f prints.
func stdoutOf(t *testing.T, f func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stdout := os.Stdout
	os.Stdout = w
	err = f()
	os.Stdout = stdout
	w.Close()
	out, _ := io.ReadAll(r)
	return string(out), err
}
