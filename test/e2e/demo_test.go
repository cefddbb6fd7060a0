//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// demoJSON is what the tests look at of `demo --json`.
type demoJSON struct {
	Way     string
	Tree    struct{ Files int }
	Results map[string]map[string]struct {
		Text  string
		Value float64
	}
}

func checkDemo(t *testing.T, out string) demoJSON {
	t.Helper()
	var d demoJSON
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("demo --json printed %q: %v", out, err)
	}
	for store, c := range d.Results["checksums"] {
		if c.Text != "equal" || int(c.Value) != d.Tree.Files || d.Tree.Files < 100 {
			t.Errorf("%s: %v of %d checksums are %s", store, c.Value, d.Tree.Files, c.Text)
		}
	}
	if len(d.Results["checksums"]) == 0 {
		t.Errorf("no checksums in %s", out)
	}
	for store, c := range d.Results["fsck"] {
		if c.Text != "clean" {
			t.Errorf("%s: fsck says %s", store, c.Text)
		}
	}
	return d
}

// TestDemo: the whole demo, with what it says about itself, and nothing left.
func TestDemo(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached", "mke2fs")
	r := rig.New(t, 2*time.Minute)
	tmp := r.Mkdir("tmp")
	r.Setenv("TMPDIR", tmp)
	d := checkDemo(t, r.Kvbfs("demo", "--json"))
	if !strings.Contains(d.Way, "loop") {
		t.Errorf("as root the demo took another way than a loop device: %s", d.Way)
	}
	if c := d.Results["loss"]["memcached"]; !strings.HasPrefix(c.Text, "EIO") {
		t.Errorf("the deleted key gave %q", c.Text)
	}
	for _, store := range []string{"embedded", "memcached"} {
		if c := d.Results["crash"][store]; c.Value <= 0 {
			t.Errorf("%s: nothing was written before the crash", store)
		}
	}
	nothingLeft(t, r, tmp)
	text := r.Kvbfs("demo", "--store-only", "file")
	for line := range strings.Lines(text) {
		if len([]rune(strings.TrimRight(line, "\n"))) > 100 {
			t.Errorf("a line too long for a terminal: %q", line)
		}
	}
	t.Logf("\n%s", text)
	nothingLeft(t, r, tmp)
}

// nothingLeft: no mount, loop device or process of a rig is left, and no file in these
// directories.
func nothingLeft(t *testing.T, r *rig.Rig, dirs ...string) {
	t.Helper()
	leftBehind(t, nil, func() []string {
		left := r.Leftovers()
		for _, dir := range dirs {
			files, _ := filepath.Glob(filepath.Join(dir, "*"))
			left = append(left, files...)
		}
		return left
	})
}

// leftBehind waits until nothing is there but what was before. A daemon has left the
// registry a moment before its process ends, and that is all that `down` waits for.
func leftBehind(t *testing.T, before []string, look func() []string) {
	t.Helper()
	// Long, for a machine that is loaded: what is left behind stays for ever.
	left := look()
	for end := time.Now().Add(30 * time.Second); !slices.Equal(left, before) && time.Now().Before(end); left = look() {
		time.Sleep(50 * time.Millisecond)
	}
	if !slices.Equal(left, before) {
		t.Errorf("left behind: %q, before: %q", left, before)
	}
}

// TestDemoInterrupted: Ctrl-C at any moment leaves nothing.
func TestDemoInterrupted(t *testing.T) {
	rig.RequireLoop(t)
	rnd := rig.Rand(t)
	for i := range 6 {
		// Half of them early, where things come into being most quickly.
		after := time.Duration(20+rnd.IntN(800+5000*(i%2))) * time.Millisecond
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r := rig.New(t, time.Minute)
			tmp := r.Mkdir("tmp")
			r.Setenv("TMPDIR", tmp)
			code := interrupted(t, r, after, i%2 == 1, r.Bin, "demo")
			t.Logf("interrupted after %v: status %d", after, code)
			if code != 130 {
				t.Errorf("status %d, want 130", code)
			}
			nothingLeft(t, r, tmp)
		})
	}
}

// TestUpInterrupted: the same for `up`; if it was quicker, `down` undoes it.
func TestUpInterrupted(t *testing.T) {
	rig.RequireLoop(t)
	rnd := rig.Rand(t)
	for i := range 8 {
		after := time.Duration(rnd.IntN(500)) * time.Millisecond
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r := rig.New(t, time.Minute)
			at := r.Mkdir("at")
			up := []string{r.Bin, "up", "disk", "--size", "1G", "--fs", "ext4", "--at", at, "--store", r.FileStore()}
			code := interrupted(t, r, after, false, up...)
			t.Logf("interrupted after %v: status %d", after, code)
			if code == 0 {
				r.Kvbfs("down", "disk")
			}
			nothingLeft(t, r, r.Path("none"))
			// And it works afterwards.
			r.Run(up...)
			if err := os.WriteFile(filepath.Join(at, "f"), []byte("x"), 0o644); err != nil {
				t.Error(err)
			}
			r.Kvbfs("down", "disk")
			nothingLeft(t, r, r.Path("none"))
		})
	}
}

// interrupted starts a command, sends SIGINT to its process group as a terminal
// does, on request twice, and returns its exit status. A command that the signal met
// before it could heed it died of it, for which a shell has the same status, 130.
// What it said is in the log of the rig, which is shown if the test fails.
func interrupted(t *testing.T, r *rig.Rig, after time.Duration, again bool, args ...string) int {
	t.Helper()
	log := r.Path("interrupted.log")
	t.Cleanup(func() {
		if said, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("%v said:\n%s", args[1:], said)
		}
	})
	if signal.Ignored(syscall.SIGINT) {
		// As in a background job of a shell. The command would inherit that.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
	cmd := r.Start(rig.Cmd{Args: args, Log: log})
	time.Sleep(after)
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	if again {
		time.Sleep(100 * time.Millisecond)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Errorf("%v is still running 30 s after Ctrl-C", args[1:])
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGINT {
		return 128 + int(syscall.SIGINT)
	}
	return cmd.ProcessState.ExitCode()
}
