package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestDownAfterTwoInterrupts: a second Ctrl-C, another wish, during the command of
// `up --rootless` is the command's; what is up is taken down all the same. Down itself
// is left half done by who insists.
func TestDownAfterTwoInterrupts(t *testing.T) {
	if os.Getenv("KVBFS_TEST_INTERRUPTED") == "" {
		// In a process of its own: a signal that comes late must not end other tests.
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), "KVBFS_TEST_INTERRUPTED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	guard := make(chan os.Signal, 16) // no signal ends the tests
	signal.Notify(guard, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(guard)
	interrupt := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
		time.Sleep(sameWish + 100*time.Millisecond)
	}
	ctx, release := interruptible()
	defer release()
	began, interrupted := filepath.Join(t.TempDir(), "began"), filepath.Join(t.TempDir(), "interrupted")
	c := upCmd{Name: "v", Command: []string{"sh", "-c",
		fmt.Sprintf("trap '' INT TERM; : >%s; until [ -e %s ]; do sleep 0.05; done; exit 3", began, interrupted)}}
	go func() {
		for {
			if _, err := os.Stat(began); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		interrupt()
		interrupt()
		if err := os.WriteFile(interrupted, nil, 0o600); err != nil {
			t.Error(err)
		}
	}()
	downs := 0
	status, err := c.whileUp(&globals{ctx: ctx, release: release}, "/mnt", func(ctx context.Context) error {
		downs++
		return ctx.Err()
	})
	if downs != 1 || status != 3 || err != nil {
		t.Errorf("down ran %d times, status %d, %v; want once, the command's 3", downs, status, err)
	}
	c.Command = []string{"true"}
	_, err = c.whileUp(&globals{ctx: t.Context(), release: func() {}}, "/mnt", func(ctx context.Context) error {
		interrupt()
		if ctx.Err() != nil {
			t.Error("the first Ctrl-C ended down")
		}
		interrupt()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("who insists: %v", err)
	}
}
