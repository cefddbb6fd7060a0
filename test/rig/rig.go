// Package rig is the workbench of the whole-system tests.
//
// # The nouns
//
//   - A [Rig] is the world of one test: a scratch directory, private state and
//     runtime directories, an environment for every command.
//   - A [Mount] is a kvbfs daemon that was started in that world, a [Memcached]
//     a private server, a [Proxy] a wire between the two that can be slow.
//   - A [File] is a file or device opened with O_DIRECT from the test process.
//   - The sweep takes down whatever is left in the scratch directory: mounts,
//     loop devices, processes, files. It goes by what the kernel says
//     (mountinfo, sysfs, /proc), not by what the test remembers, so it works
//     after a failure at any moment.
//
// The test process is never the daemon, so it may touch the mount. A call into
// a mount whose daemon hangs would block for ever: a watchdog kills the daemons
// when a test exceeds its limit, which turns the call into an error.
package rig

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// marker is the variable by which the sweep recognises the processes of a rig.
const marker = "KVBFS_RIG"

// Rig is one test's world.
type Rig struct {
	T   testing.TB
	Dir string // scratch directory; everything is below it
	Bin string // the kvbfs binary

	// Transport is what the mounts of this rig are told by --transport; empty is
	// the default. KVBFS_TRANSPORT sets it for all rigs.
	Transport string
	// CacheMode is what the mounts of this rig are told by --cache; empty is the
	// default. KVBFS_CACHE sets it for all rigs.
	CacheMode string

	// Cache is what the mounts of this rig are told by --cache-size; empty: nothing.
	// KVBFS_RIG_CACHE sets it for all rigs.
	Cache string

	panics bool // its daemons are made to panic

	limit time.Duration // of the test
	dog   *time.Timer   // barks at the limit

	mu    sync.Mutex
	extra []string // guarded by mu: environment beside the private directories
	swept bool     // guarded by mu

	servers map[int]bool // guarded by mu: process ids that the test itself started as stores
}

// New makes a world that is swept at the end of the test, or when limit has
// passed (then the test fails).
func New(t testing.TB, limit time.Duration) *Rig {
	t.Helper()
	if os.Getenv("CI") == "true" { // whose machines may be slow: the limit is there to end what hangs
		limit *= 3
	}
	bin := Binary(t)
	dir, err := os.MkdirTemp("", "kvbfs-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{T: t, Dir: dir, Bin: bin, Transport: os.Getenv("KVBFS_TRANSPORT"), Cache: os.Getenv("KVBFS_RIG_CACHE"), CacheMode: os.Getenv("KVBFS_CACHE")}
	for _, d := range []string{r.StateDir(), r.RuntimeDir()} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	r.limit = limit
	r.dog = time.AfterFunc(limit, func() {
		t.Errorf("the test took longer than %v: its daemons are killed", limit)
		r.killAll()
	})
	t.Cleanup(func() {
		r.dog.Stop()
		if t.Failed() {
			r.tellLogs()
		}
		r.Sweep()
	})
	return r
}

// tellLogs prints what the daemons of a test that failed logged last.
func (r *Rig) tellLogs() {
	const lines = 60
	logs, _ := filepath.Glob(filepath.Join(r.Dir, "*", "mounts", "*.log"))
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil || len(text) == 0 {
			continue
		}
		all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		r.T.Logf("%s, the last lines:\n%s", filepath.Base(name), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
}

// StateDir and RuntimeDir are what KVBFS_STATE_DIR and KVBFS_RUNTIME_DIR name.
func (r *Rig) StateDir() string { return filepath.Join(r.Dir, "state") }

// RuntimeDir holds the registry of mounts, sockets and local state.
func (r *Rig) RuntimeDir() string { return filepath.Join(r.Dir, "run") }

// Path joins names to the scratch directory.
func (r *Rig) Path(names ...string) string {
	return filepath.Join(append([]string{r.Dir}, names...)...)
}

// Mkdir makes a directory in the scratch directory and returns its path.
func (r *Rig) Mkdir(names ...string) string {
	r.T.Helper()
	p := r.Path(names...)
	if err := os.MkdirAll(p, 0o755); err != nil {
		r.T.Fatal(err)
	}
	return p
}

// Setenv adds to the environment of the commands that follow.
func (r *Rig) Setenv(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.extra = append(r.extra, key+"="+value)
}

// Env is the environment of every command: the process's own without what
// would reach another kvbfs, plus the private directories.
func (r *Rig) Env() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KVBFS_") {
			env = append(env, kv)
		}
	}
	env = append(env,
		marker+"="+r.Dir,
		"KVBFS_STATE_DIR="+r.StateDir(),
		"KVBFS_RUNTIME_DIR="+r.RuntimeDir(),
		// Where a binary with the race detector says what it found; see complaints.
		"GORACE=log_path="+r.Path("race"),
		"NO_COLOR=1", "LC_ALL=C.UTF-8")
	if r.Transport != "" { // of mounts that up and demo make
		env = append(env, "KVBFS_TRANSPORT="+r.Transport)
	}
	return append(env, r.extra...)
}

// FileStore is the URL of an embedded store in the scratch directory.
func (r *Rig) FileStore() string { return "file://" + r.Path("store") }

// Seed returns the seed of this run's random choices and prints it. The
// variable KVBFS_SEED repeats a run.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVBFS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("KVBFS_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed: KVBFS_SEED=%d", seed)
	return seed
}

// Rand returns a source of random choices begun with Seed.
func Rand(t testing.TB) *rand.Rand {
	return rand.New(rand.NewPCG(Seed(t), 0x6b766266))
}

// Eventually waits until cond holds, for at most d.
func Eventually(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, d)
		}
	}
}

// Size spells a number of bytes for messages.
func Size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}
