package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{io.EOF, 1},
		{errSaid, 1},
		{usagef("no"), 2},
		{fmt.Errorf("x: %w", usagef("no")), 2},
		{fmt.Errorf("x: %w", stack.ErrInput), 2},
		{fmt.Errorf("x: %w", pool.ErrBadName), 2},
		{fmt.Errorf("x: %w", pool.ErrBadSize), 2},
		{volume.ErrShrink, 2},
		{volume.ErrOutside, 2},
		{pool.ErrNoVolume, 1},
		{pool.ErrHeld, 1},
		{&kvstore.OpError{Op: "read", Err: kvstore.ErrUnreachable}, 1},
		{&daemon.StartError{Text: "x", Status: 2}, 2},
		{&daemon.StartError{Text: "x", Status: 1}, 1},
		{fmt.Errorf("x: %w", context.Canceled), 130},
		{errors.Join(io.EOF, context.Canceled), 130},
		{context.DeadlineExceeded, 1},
	} {
		if got := exitStatus(c.err); got != c.want {
			t.Errorf("exitStatus(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

func TestParseOffset(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "1M": 1 << 20, "0x1000": 4096, "0X10": 16} {
		if got, err := parseOffset(in); err != nil || got != want {
			t.Errorf("parseOffset(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "-1", "0x", "0x-1", "0x+1", "0xfffffffffffffffff", "x"} {
		if got, err := parseOffset(in); exitStatus(err) != 2 {
			t.Errorf("parseOffset(%q) = %d, %v; want a usage error", in, got, err)
		}
	}
}

// A store that comes from the environment may hold a secret: it must not become
// an argument of the daemon.
func TestChildArgsHoldWhatWasGiven(t *testing.T) {
	t.Setenv("KVBFS_STORE", "redis://u:s3cret@h")
	c := mountCmd{Dir: "-m", Transport: "dev", Connections: 2, Only: []string{"a", "b"}, ReadOnly: true}
	got := fmt.Sprint(c.childArgs())
	want := "[mount -f --ready-fd=3 --transport=dev --connections=2 --only=a,b --read-only -- -m]"
	if got != want {
		t.Errorf("childArgs:\n%s\nwant\n%s", got, want)
	}
}

// A supervisor signals a process and its group: the second signal must not cut
// the clean-up short, and one that comes later must. (No signal is sent: it could
// end the tests.)
func TestTwoSignalsAtOnceAreOneWish(t *testing.T) {
	signals := make(chan os.Signal)
	at := []time.Duration{0, sameWish, sameWish + 1}
	now := func() time.Time { // asked once for each signal
		t := time.Unix(0, int64(at[0]))
		at = at[1:]
		return t
	}
	again := make(chan struct{}, 3)
	ctx, stop := heed(signals, now, func() { again <- struct{}{} })
	defer stop()
	signals <- syscall.SIGINT
	<-ctx.Done()
	signals <- syscall.SIGINT
	signals <- syscall.SIGTERM
	<-again
	if len(again) != 0 {
		t.Error("the second signal was taken for another wish")
	}
	if removed := removalInterrupted("v"); exitStatus(removed) != exitInterrupted {
		t.Errorf("exit status %d of %v", exitStatus(removed), removed)
	}
}

// Whatever fails once the context has ended counts as interrupted; so does what a
// child died of that the same Ctrl-C met, also before this process heard of it.
func TestInterruptedWhateverItSays(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	if err := asInterrupted(ctx, io.EOF); err != io.EOF {
		t.Errorf("a failure without a signal: %v", err)
	}
	child := exec.Command("sh", "-c", "kill -INT $$")
	child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	died := child.Run()
	if err := asInterrupted(ctx, died); exitStatus(err) != exitFailure {
		t.Errorf("a child that somebody else signalled: %v", err)
	}
	time.AfterFunc(time.Millisecond, cancel)
	if err := asInterrupted(ctx, fmt.Errorf("x: %w", died)); exitStatus(err) != exitInterrupted {
		t.Errorf("a child that died of the signal: %v", err)
	}
	if err := asInterrupted(ctx, io.EOF); exitStatus(err) != exitInterrupted || !errors.Is(err, io.EOF) {
		t.Errorf("a failure after the signal: %v", err)
	}
	if err := asInterrupted(ctx, nil); err != nil {
		t.Errorf("what succeeded all the same: %v", err)
	}
}
