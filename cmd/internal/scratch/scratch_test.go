package scratch

import (
	"context"
	"os"
	"testing"
)

func TestSweepTakesProcessesAndFiles(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	// New sets these for the process; give them back afterwards.
	t.Setenv("KVBFS_STATE_DIR", "")
	t.Setenv("KVBFS_RUNTIME_DIR", "")
	s, err := New("/nonexistent", "test")
	if err != nil {
		t.Fatal(err)
	}
	cmd := s.Command(context.Background(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	if n := len(s.processes()); n != 1 {
		t.Errorf("%d processes found, want 1", n)
	}
	n, err := s.Sweep()
	if err != nil || n.Processes != 1 {
		t.Errorf("swept %+v: %v", n, err)
	}
	<-ended
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("the scratch is still there: %v", err)
	}
}
