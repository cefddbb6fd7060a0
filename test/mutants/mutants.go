// Package mutants plants bugs and looks whether the tests notice.
//
// # The nouns
//
//   - A [Mutant] is one bug: a piece of one source file and what takes its place.
//   - Its test is the one that must fail; a mutant survives if it passes.
//
// Nothing is changed on disk: the go command builds with an overlay in which one
// file is another. A piece that is not found exactly once fails too, so a mutant
// cannot rot unnoticed while the code moves on.
//
// `make mutants` runs all of them; two run with every `make test`.
package mutants

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Mutant is a planted bug.
type Mutant struct {
	Name string
	// File is the source file, below the top of the tree; Old must be in it once.
	File     string
	Old, New string
	// Package holds Test, which must fail. Where it is test/e2e the binary is built
	// with the bug, and the test without.
	Package, Test string
}

// limit bounds one mutant: two builds and a test. A test that hangs on a bug is
// ended by the go command and counts as one that failed.
const limit = 5 * time.Minute

// Catch plants the bug and fails t unless the mutant's test notices.
func (m Mutant) Catch(t *testing.T, top string) {
	t.Helper()
	if !m.caught(t, top) {
		t.Fatalf("survived: %s of %s passes though\n- %s\n+ %s", m.Test, m.Package, m.Old, m.New)
	}
	t.Logf("caught by %s of %s", m.Test, m.Package)
}

// caught says whether the test fails with the bug; what is neither that nor a pass
// fails t.
func (m Mutant) caught(t *testing.T, top string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	overlay, err := m.overlay(top, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"test", "-count=1", "-timeout=120s", "-run", "^" + m.Test + "$"}
	var env []string
	if m.Package == "test/e2e" {
		bin := filepath.Join(t.TempDir(), "kvbfs")
		out, err := command(ctx, top, nil, "build", "-overlay", overlay, "-o", bin, "./cmd/kvbfs")
		if err != nil {
			t.Fatalf("the mutant does not build: %v\n%s", err, out)
		}
		env = []string{"KVBFS_BIN=" + bin}
		args = append(args, "-tags", "e2e")
	} else {
		args = append(args, "-overlay", overlay)
		if out, err := command(ctx, top, nil, "test", "-overlay", overlay, "-run", "^$", "./"+m.Package); err != nil {
			t.Fatalf("the mutant does not build: %v\n%s", err, out)
		}
	}
	out, err := command(ctx, top, env, append(args, "./"+m.Package)...)
	failed := strings.Contains(out, "--- FAIL: "+m.Test) || strings.Contains(out, "panic: test timed out") ||
		strings.Contains(out, "panic:") && strings.Contains(out, m.Test)
	switch {
	case ctx.Err() != nil:
		t.Fatalf("not over within %v:\n%s", limit, tail(out))
	case err == nil:
		return false
	case !failed:
		t.Fatalf("%s of %s did not fail, but something else did:\n%s", m.Test, m.Package, tail(out))
	}
	return true
}

// overlay writes the changed file and the overlay that puts it in its place.
func (m Mutant) overlay(top, dir string) (string, error) {
	path, err := filepath.Abs(filepath.Join(top, m.File))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), m.Old); n != 1 {
		return "", fmt.Errorf("%s has the piece that is to be changed %d times, not once: the code moved on, and the mutant must follow\n%s", m.File, n, m.Old)
	}
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.Old, m.New, 1)), 0o600); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}

// command runs the go tool in the tree.
func command(ctx context.Context, top string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tail is the end of a long output.
func tail(s string) string { return s[max(0, len(s)-4000):] }
