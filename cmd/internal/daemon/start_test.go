package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveNothing is a child of Start that serves a directory in the registry only, until
// it is killed.
func serveNothing(dir string) {
	r := NewReporter(ReadyFD)
	os.Stderr.WriteString("a line of the log\n")
	_, err := claim(Mount{Dir: dir, PID: os.Getpid(), Started: time.Now(), Ready: true})
	if err != nil {
		r.Failed(err, 1)
		return
	}
	r.Ready("serving")
	select {}
}

// TestLoserOfTwoStartsKeepsTheLog: the second of two starts on one directory fails, and
// does not remove the log that the first one writes to. Once nobody writes to it, it
// does.
func TestLoserOfTwoStartsKeepsTheLog(t *testing.T) {
	dir, err := filepath.EvalSymlinks(isolate(t))
	if err != nil {
		t.Fatal(err)
	}
	base, err := basePath(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KVBFS_TEST_SERVE", dir)
	if banner, err := Start(t.Context(), dir, nil, nil); err != nil || banner != "serving" {
		t.Fatalf("the first start: %q, %v", banner, err)
	}
	winner, ok := FindDir(dir)
	if !ok {
		t.Fatal("the first start is not in the registry")
	}
	t.Cleanup(func() { syscall.Kill(winner.PID, syscall.SIGKILL) })
	var said *StartError
	if _, err := Start(t.Context(), dir, nil, nil); !errors.As(err, &said) || !strings.Contains(said.Text, ErrMounted.Error()) {
		t.Errorf("the second start: %v", err)
	}
	if _, err := os.Stat(base + ".log"); err != nil {
		t.Errorf("the log of the daemon that serves: %v", err)
	}
	if err := syscall.Kill(winner.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	log, err := openLog(base + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // its threads end one by one
		removeLog(log, base+".log")
		if _, err := os.Stat(base + ".log"); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the log that nobody writes to any more stays")
		}
	}
}
