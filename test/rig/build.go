package rig

import (
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
	for _, dir := range []string{build.dir, faulty.dir} {
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

var faulty struct {
	once sync.Once
	dir  string
	err  error
	out  []byte
}

// Faulty makes the rig use a binary that misbehaves as rules say (fault.Parse),
// built once per test process.
func (r *Rig) Faulty(rules string) {
	r.T.Helper()
	faulty.once.Do(func() {
		if faulty.dir, faulty.err = os.MkdirTemp("", "kvbfs-bin-"); faulty.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-tags", "kvbfs_faults", "-o", filepath.Join(faulty.dir, "kvbfs"), "./cmd/kvbfs")
		cmd.Dir = ModuleRoot(r.T)
		faulty.out, faulty.err = cmd.CombinedOutput()
	})
	if faulty.err != nil {
		r.T.Fatalf("building kvbfs with faults: %v\n%s", faulty.err, faulty.out)
	}
	r.Bin = filepath.Join(faulty.dir, "kvbfs")
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
