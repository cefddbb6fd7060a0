package chain

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvbfs/kvbfs/losetup"
)

// upRootless brings a volume up with fuse2fs, by a run that is killed before it could
// note the process.
func upRootless(t *testing.T) (*fake, *Chain, Request) {
	t.Helper()
	f := newFake()
	c, req := start(t, f)
	req.Rootless = true
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	rec, err := c.load("vol")
	if err != nil {
		t.Fatal(err)
	}
	rec.Fuse2fs = 0
	if err := c.save(rec); err != nil {
		t.Fatal(err)
	}
	return f, c, req
}

// A fuse2fs that lives is not taken for lost: a second one on its image would ruin the
// file system.
func TestAFuse2fsThatWasNotNotedIsFound(t *testing.T) {
	f, c, req := upRootless(t)
	f.users[req.At] = []string{"editor (pid 5)"}
	calls := f.calls
	if res, err := c.Up(t.Context(), req); err != nil || !res.Already {
		t.Errorf("Up: %+v, %v", res, err)
	}
	if _, err := c.Down(t.Context(), req.Name, ""); err == nil || !strings.Contains(err.Error(), "editor") {
		t.Errorf("Down while it is used: %v", err)
	}
	if f.calls != calls || len(f.said) > 0 {
		t.Errorf("they did %d things and said %q", f.calls-calls, f.said)
	}
	clear(f.users)
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Error(err)
	}
	if left := leftovers(c, f, req); !slices.Equal(left, []string{"volume vol"}) {
		t.Errorf("Down left %v", left)
	}
}

// It ended, and somebody else mounted something in its place.
func TestAForeignMountInPlaceOfFuse2fs(t *testing.T) {
	f, c, req := upRootless(t)
	clear(f.procs)
	calls := f.calls
	_, upErr := c.Up(t.Context(), req)
	_, downErr := c.Down(t.Context(), req.Name, "")
	for _, err := range []error{upErr, downErr} {
		if err == nil || !strings.Contains(err.Error(), "fusermount3 -u "+req.At) {
			t.Errorf("%v, want what to do", err)
		}
	}
	if _, ok := losetup.MountAt(f.table, req.At); !ok || f.calls != calls {
		t.Errorf("they did %d things; mounts: %v", f.calls-calls, f.table)
	}
	f.dead[req.At] = true // nobody serves it
	if res, err := c.Up(t.Context(), req); err != nil || len(res.Repaired) != 1 {
		t.Errorf("Up over a dead one: %+v, %v", res, err)
	}
}

// Its mount is gone, and it still writes: the next one waits for its end.
func TestUpWaitsForAFuse2fsThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c, req := upRootless(t)
		at, _ := losetup.MountAt(f.table, req.At)
		f.table = slices.DeleteFunc(f.table, func(m losetup.Mount) bool { return m.Point == req.At })
		calls := f.calls
		if _, err := c.Up(t.Context(), req); err == nil || !strings.Contains(err.Error(), "end it") || f.calls != calls {
			t.Errorf("Up beside one that does not end did %d things: %v", f.calls-calls, err)
		}
		begin := time.Now()
		c.sys = &leaves{f, begin.Add(time.Second)}
		if _, err := c.Up(t.Context(), req); err != nil || time.Since(begin) < time.Second {
			t.Errorf("Up after %v: %v", time.Since(begin), err)
		}
		if again, ok := losetup.MountAt(f.table, req.At); !ok || again != at {
			t.Errorf("mounts: %v", f.table)
		}
	})
}

// leaves is a machine whose fuse2fs ends in a while.
type leaves struct {
	*fake
	end time.Time
}

func (l *leaves) Alive(int, string) bool { return time.Now().Before(l.end) }

func TestFind(t *testing.T) {
	cmd := exec.Command("sleep", "60.5", "0.25")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for _, tt := range []struct {
		args []string
		want int
	}{{[]string{"60.5"}, cmd.Process.Pid}, {[]string{"60.5", "0.25"}, cmd.Process.Pid}, {[]string{"60.5", "0.5"}, 0}, {[]string{"0.25"}, 0}} {
		if pid, err := (&machine{}).Find(t.Context(), "sleep", tt.args...); err != nil || pid != tt.want {
			t.Errorf("%q: %d, %v, want %d", tt.args, pid, err, tt.want)
		}
	}
}
