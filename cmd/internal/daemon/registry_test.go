package daemon

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("KVBFS_TEST_CLAIM"); dir != "" {
		claimAndWait(dir)
		return
	}
	if dir := os.Getenv("KVBFS_TEST_SERVE"); dir != "" {
		serveNothing(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// claimAndWait is a child process that is a daemon in the registry until its
// standard input ends, or it is killed.
func claimAndWait(dir string) {
	base, err := basePath(dir)
	if err != nil {
		panic(err)
	}
	m := Mount{Dir: dir, Store: "file:///x", PID: os.Getpid(), Socket: base + ".sock", Started: time.Now(), Ready: true}
	if _, err := claim(m); err != nil {
		panic(err)
	}
	os.WriteFile(m.Socket, nil, 0o600)
	os.Stdout.WriteString("claimed\n")
	bufio.NewReader(os.Stdin).ReadByte()
}

func isolate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("KVBFS_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, "run"))
	return dir
}

// startClaim starts a claimAndWait child.
func startClaim(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "KVBFS_TEST_CLAIM="+dir)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "claimed\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return cmd
}

func TestRegistryOfLiveAndDeadDaemons(t *testing.T) {
	dir := isolate(t)
	one, two := startClaim(t, filepath.Join(dir, "one")), startClaim(t, filepath.Join(dir, "two"))
	list, err := Mounts()
	if err != nil || len(list) != 2 || list[0].PID != one.Process.Pid || list[1].PID != two.Process.Pid {
		t.Fatalf("two live daemons: %+v, %v", list, err)
	}
	if m, ok := FindDir(filepath.Join(dir, "x/../one")); !ok || m.PID != one.Process.Pid {
		// x does not exist: Abs cleans the path before links are resolved
		t.Errorf("FindDir: %+v, %v", m, ok)
	}
	if got := FindStore("file:///x"); len(got) != 2 {
		t.Errorf("FindStore: %+v", got)
	}
	if got := FindStore("file:///y"); len(got) != 0 {
		t.Errorf("FindStore of another store: %+v", got)
	}
	// A live daemon's mount point cannot be claimed, a dead one's can.
	if _, err := claim(Mount{Dir: filepath.Join(dir, "one")}); !errors.Is(err, ErrMounted) {
		t.Errorf("claim of a live daemon's mount point: %v", err)
	}
	dead := list[0]
	if err := one.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	one.Wait()
	if !WaitGone(t.Context(), dead, time.Second) {
		t.Error("WaitGone does not see that the daemon is dead")
	}
	if list, err = Mounts(); err != nil || len(list) != 1 || list[0].PID != two.Process.Pid {
		t.Fatalf("one live daemon: %+v, %v", list, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "run/mounts/*"))
	if len(left) != 2 { // json and sock of the live one
		t.Errorf("left in the registry: %v", left)
	}
	e, err := claim(Mount{Dir: filepath.Join(dir, "one"), PID: os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ = Mounts(); len(list) != 1 {
		t.Errorf("a daemon that is starting is listed as serving: %+v", list)
	}
	e.release()
}

// TestRuntimeDirectoryIsTooLong: what no socket can be made in is refused before anything
// is mounted, with the variable that helps.
func TestRuntimeDirectoryIsTooLong(t *testing.T) {
	dir := isolate(t)
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, strings.Repeat("x", 100)))
	if _, err := Start(t.Context(), dir, nil, nil); err == nil || !strings.Contains(err.Error(), "KVBFS_RUNTIME_DIR") {
		t.Errorf("a start: %v", err)
	}
}

// TestRegistryInADirectoryWithSigns: what a pattern would be made of is part of the
// runtime directory's name.
func TestRegistryInADirectoryWithSigns(t *testing.T) {
	dir := isolate(t)
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, `r[un]*?\`))
	one := startClaim(t, filepath.Join(dir, "one"))
	if list, err := Mounts(); err != nil || len(list) != 1 || list[0].PID != one.Process.Pid {
		t.Errorf("a live daemon: %+v, %v", list, err)
	}
}

// Readers that look, and remove dead entries, must never take the entry of a
// daemon that starts at the same time.
func TestClaimAgainstReaders(t *testing.T) {
	dir := isolate(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				registered()
			}
		}
	}()
	for i := range 200 {
		m := Mount{Dir: filepath.Join(dir, "m"), PID: i + 1, Ready: true}
		e, err := claim(m)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if _, err := os.Stat(e.base + ".json"); err != nil || !current(e.file) {
			t.Fatalf("round %d: the entry was taken away: %v", i, err)
		}
		if got, ok := look(e.base + ".json"); !ok || got.PID != i+1 {
			t.Fatalf("round %d: read %+v, %v", i, got, ok)
		}
		e.release()
	}
	close(stop)
	<-done
}

func TestEntryShrinks(t *testing.T) {
	dir := isolate(t)
	m := Mount{Dir: filepath.Join(dir, "m"), Store: strings.Repeat("x", 500)}
	e, err := claim(m)
	if err != nil {
		t.Fatal(err)
	}
	defer e.release()
	m.Store = "y"
	if err := e.write(m); err != nil {
		t.Fatal(err)
	}
	if got, ok := look(e.base + ".json"); !ok || got.Store != "y" {
		t.Errorf("read %+v, %v", got, ok)
	}
}

func TestCanonicalFollowsLinksOfParentsOnly(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "real")
	if err := errors.Join(os.Mkdir(real, 0o700), os.Symlink(real, filepath.Join(dir, "link")), os.Symlink(real, filepath.Join(real, "self"))); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{"link/m": "real/m", "real/./m/": "real/m", "real/self": "real/self", "link/self": "real/self"} {
		if got, err := Canonical(filepath.Join(dir, in)); err != nil || got != filepath.Join(dir, want) {
			t.Errorf("Canonical(%s) = %s, %v; want %s", in, got, err, want)
		}
	}
	if _, err := Canonical(filepath.Join(dir, "none/m")); err == nil {
		t.Error("a parent that does not exist was taken")
	}
}
