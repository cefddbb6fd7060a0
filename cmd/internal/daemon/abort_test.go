package daemon

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestInterruptedAbortKillsNobody: an abort that is interrupted while requests fail
// leaves the daemon alone; it may need a moment to let go, and have data to store.
func TestInterruptedAbortKillsNobody(t *testing.T) {
	daemon := exec.Command("sleep", "60")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	m := FUSE{Connection: t.TempDir()}
	if err := os.WriteFile(filepath.Join(m.Connection, "waiting"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(2*abortStep, cancel)
	out := Aborted{Dir: "/mnt", PID: daemon.Process.Pid}
	err := m.settle(ctx, &out)
	if out.Killed || stateOf(out.PID) == 'Z' {
		t.Errorf("the daemon was killed: %+v", out)
	}
	if err == nil || !strings.Contains(err.Error(), "requests may still wait") {
		t.Errorf("an interrupted abort: %v", err)
	}
}
