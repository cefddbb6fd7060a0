package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var build struct {
	once sync.Once
	dir  string
	bin  string
	err  error
	out  []byte
}

// Main runs the tests of a package and removes the binary afterwards. Call it
// from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	for _, dir := range []string{build.dir, builds.dir} {
		if dir != "" {
			os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// Binary returns the kvbfs binary, built once per test process.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		if b := os.Getenv("KVBFS_BIN"); b != "" {
			build.bin, build.err = filepath.Abs(b)
			return
		}
		if build.dir, build.err = os.MkdirTemp("", "kvbfs-bin-"); build.err != nil {
			return
		}
		// Tests run the binary as another user too.
		if build.err = os.Chmod(build.dir, 0o755); build.err != nil {
			return
		}
		build.bin = filepath.Join(build.dir, "kvbfs")
		args := []string{"build", "-o", build.bin}
		if os.Getenv("KVBFS_E2E_RACE") == "1" {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "./cmd/kvbfs")...)
		cmd.Dir = ModuleRoot(t)
		build.out, build.err = cmd.CombinedOutput()
	})
	if build.err != nil {
		t.Fatalf("building kvbfs: %v\n%s", build.err, build.out)
	}
	return build.bin
}

var builds struct {
	mu   sync.Mutex
	dir  string            // guarded by mu
	bins map[string]string // guarded by mu: by package and tags
}

// Build builds a program of this module, once per test process, and returns its path.
// The time it takes does not count as the test's: on a loaded machine with an empty
// cache it takes minutes. The flags are those of `make build`, so that most of it is
// in the cache.
func (r *Rig) Build(pkg, tags string) string {
	r.T.Helper()
	builds.mu.Lock()
	defer builds.mu.Unlock()
	name := pkg + " " + tags
	if bin, ok := builds.bins[name]; ok {
		return bin
	}
	if r.dog.Stop() {
		defer r.dog.Reset(r.limit)
	}
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "kvbfs-bin-")
		if err != nil {
			r.T.Fatal(err)
		}
		builds.dir, builds.bins = dir, map[string]string{}
	}
	bin := filepath.Join(builds.dir, fmt.Sprintf("%s-%d", filepath.Base(pkg), len(builds.bins)))
	cmd := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", bin, pkg)
	cmd.Dir = ModuleRoot(r.T)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.T.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
	builds.bins[name] = bin
	return bin
}

// Faulty makes the rig use a binary that misbehaves as rules say (fault.Parse).
func (r *Rig) Faulty(rules string) {
	r.T.Helper()
	r.Bin = r.Build("./cmd/kvbfs", "kvbfs_faults")
	r.Setenv("KVBFS_FAULTS", rules)
	r.panics = true
}

// ModuleRoot is the directory of go.mod.
func ModuleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = up
	}
}
