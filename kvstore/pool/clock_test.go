package pool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
)

// TestWallClocks: two machines whose times of day are hours apart, and are set
// while a lease is held, or all the time, respect it for a TTL, no longer and no
// shorter.
func TestWallClocks(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, apart := range []time.Duration{0, 10 * time.Hour, -10 * time.Hour, allTheTime} {
		t.Run(apart.String(), func(t *testing.T) {
			t.Parallel()
			wallClocks(t, apart)
		})
	}
}

// allTheTime is a distance of clocks that are set all the time.
const allTheTime = time.Duration(1)

func wallClocks(t *testing.T, apart time.Duration) {
	const ttl = time.Second // see aliveTTL; four of these pass
	ctx := t.Context()
	st := newVolume(t, 1)
	var set time.Duration
	var pools [2]*Pool
	for i := range pools {
		off := apart * time.Duration(i)
		now := func() time.Time { return time.Now().Add(off + set) }
		if apart == allTheTime {
			now = jumping
		}
		pools[i] = open(t, newRig(st), Options{RuntimeDir: t.TempDir(), Now: now})
	}
	p, q := pools[0], pools[1]
	l := acquire(t, p, LeaseOptions{TTL: ttl})
	// For each way in which the clocks of both are set the holder lives.
	for _, set = range []time.Duration{0, time.Hour, -24 * time.Hour} {
		_, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL})
		wantErr(t, err, ErrHeld)
		if err := l.Wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	set = 48 * time.Hour
	p.Close()
	began := kvstore.Boottime()
	m := acquire(t, q, LeaseOptions{})
	if waited := time.Duration(kvstore.Boottime() - began); waited < ttl {
		t.Errorf("taken over after %v, before the TTL", waited)
	}
	if l.Fence().Passes() {
		t.Error("the old holder may write")
	}
	h, _, err := q.Holder(ctx, "v")
	if wrong := time.Until(h.Since); err != nil || apart != allTheTime && (wrong-set-apart).Abs() > time.Hour {
		t.Errorf("the record's time of day is wrong by %v, not by %v: %v", wrong, set+apart, err)
	}
	if err := m.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// clockTTL is longer than testTTL: the two processes are not slow together.
const clockTTL = 2 * time.Second

// TestOtherMonotonicClock: two processes whose monotonic clocks are a million
// seconds apart, as those of two machines are, and whose times of day are ten
// hours apart, respect one lease. The one with the other clock runs in a time
// namespace.
func TestOtherMonotonicClock(t *testing.T) {
	if dir := os.Getenv("KVBFS_TEST_CLOCK"); dir != "" {
		otherClock(t, dir)
		return
	}
	const apart = 1_000_000
	if out, err := exec.Command("unshare", "--time", "--monotonic", "1", "--boottime", "1", "true").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatalf("no time namespaces: %v %s", err, out)
		}
		t.Skipf("needs time namespaces: %v %s", err, out)
	}
	ctx := t.Context()
	dir := t.TempDir()
	p := openClock(t, dir, 0)
	makeReady(t, p, "v")
	began := kvstore.Boottime()
	other := startOther(t, dir, apart)
	if there := other.number("boottime"); there < began+(apart-1)*int64(time.Second) {
		t.Fatalf("the other process's clock says %v, ours %v", time.Duration(there), time.Duration(began))
	}
	take := func() *Lease { return acquire(t, p, LeaseOptions{TTL: clockTTL}) }

	l := take()
	other.is("acquire", "held")
	if err := errors.Join(l.Wait(ctx), l.Release(ctx)); err != nil {
		t.Fatal(err)
	}
	other.is("acquire", "taken")
	_, err := p.Acquire(ctx, "v", LeaseOptions{TTL: clockTTL})
	wantErr(t, err, ErrHeld)
	other.is("passes", "true")

	// It stands still for longer than its lease.
	if err := syscall.Kill(other.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began = kvstore.Boottime()
	l = take()
	if waited := time.Duration(kvstore.Boottime() - began); waited < clockTTL {
		t.Errorf("taken over after %v, before the TTL", waited)
	}
	if err := syscall.Kill(other.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	other.is("passes", "false")

	// We crash.
	p.Close()
	there := other.number("boottime")
	other.is("acquire", "taken")
	if waited := time.Duration(other.number("boottime") - there); waited < clockTTL {
		t.Errorf("taken over after %v of the other clock, before the TTL", waited)
	}
	if l.Fence().Passes() {
		t.Error("the old holder may write")
	}
	other.is("release", "free")
}

// openClock opens the pool of a directory as a machine of its own with a clock that
// is wrong.
func openClock(t *testing.T, dir string, wrong time.Duration) *Pool {
	st, err := file.Open(filepath.Join(dir, "store"), file.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return open(t, st, Options{RuntimeDir: t.TempDir(), Now: func() time.Time { return time.Now().Add(wrong) }})
}

// otherProcess does what it is told, a line at a time.
type otherProcess struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
	pid int
}

// startOther starts this test in a time namespace.
func startOther(t *testing.T, dir string, apart int) *otherProcess {
	off := strconv.Itoa(apart)
	c := exec.Command("unshare", "--time", "--monotonic", off, "--boottime", off,
		os.Args[0], "-test.run=^TestOtherMonotonicClock$", "-test.timeout=5m")
	c.Env = append(os.Environ(), "KVBFS_TEST_CLOCK="+dir)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	o := &otherProcess{t: t, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		if o.pid != 0 {
			_ = syscall.Kill(o.pid, syscall.SIGCONT)
		}
		in.Close() // ends it
		_ = c.Wait()
	})
	o.pid = int(o.number("pid"))
	return o
}

// ask tells it a word and returns the answer.
func (o *otherProcess) ask(word string) string {
	o.t.Helper()
	if _, err := fmt.Fprintln(o.in, word); err != nil {
		o.t.Fatal(err)
	}
	if !o.out.Scan() {
		o.t.Fatalf("%s: the other process has ended", word)
	}
	return o.out.Text()
}

func (o *otherProcess) is(word, want string) {
	o.t.Helper()
	if got := o.ask(word); got != want {
		o.t.Fatalf("%s, with the other clock: %s, want %s", word, got, want)
	}
}

func (o *otherProcess) number(word string) int64 {
	o.t.Helper()
	n, err := strconv.ParseInt(o.ask(word), 10, 64)
	if err != nil {
		o.t.Fatal(err)
	}
	return n
}

// otherClock is the process in the time namespace.
func otherClock(t *testing.T, dir string) {
	p := openClock(t, dir, 10*time.Hour)
	var l *Lease
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer := ""
		switch in.Text() {
		case "pid":
			answer = strconv.Itoa(os.Getpid())
		case "boottime":
			answer = strconv.FormatInt(kvstore.Boottime(), 10)
		case "passes":
			answer = strconv.FormatBool(l.Fence().Passes())
		case "acquire":
			taken, err := p.Acquire(t.Context(), "v", LeaseOptions{TTL: clockTTL})
			switch {
			case err == nil:
				l, answer = taken, "taken"
			case errors.Is(err, ErrHeld):
				answer = "held"
			default:
				answer = strings.ReplaceAll(err.Error(), "\n", " ")
			}
		case "release":
			if answer = "free"; l.Release(t.Context()) != nil {
				answer = "not released"
			}
		}
		fmt.Println(answer)
	}
}
