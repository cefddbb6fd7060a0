package stack

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// isolate gives the test its own state and runtime directories.
func isolate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("KVBFS_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, "run"))
	t.Setenv("KVBFS_STORE", "")
	return dir
}

func TestOpenFileKeepsVolumes(t *testing.T) {
	dir := isolate(t)
	url := "file://" + filepath.Join(dir, "store")
	s, err := Open(t.Context(), Config{URL: url + "/"})
	if err != nil {
		t.Fatal(err)
	}
	if s.URL != url {
		t.Errorf("URL %q, want the canonical %q", s.URL, url)
	}
	if len(s.RTT) != 1 || s.RTT[0] <= 0 {
		t.Errorf("round trips %v, want one", s.RTT)
	}
	if err := s.Volumes.Create(t.Context(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second Close does nothing
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open(t.Context(), Config{URL: url}); err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	list, err := s.Volumes.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Name != "a" || list[0].Size != 1<<20 {
		t.Errorf("volumes after opening again: %+v, %v", list, err)
	}
}

// A store in memory is empty each time; that an earlier one had a pool must not
// be remembered, and nothing of it stays.
func TestOpenMemTwice(t *testing.T) {
	dir := isolate(t)
	for range 2 {
		s, err := Open(t.Context(), Config{URL: "mem:", Dangerous: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Volumes.Create(t.Context(), "a", 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "run", "mem-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := isolate(t)
	for url, want := range map[string]error{
		"etcd://h":                     ErrInput,
		"memcached://127.0.0.1:1/pool": kvstore.ErrUnreachable,
		"memcached+unix://" + filepath.Join(dir, "none.sock"): kvstore.ErrUnreachable,
	} {
		_, err := Open(t.Context(), Config{URL: url})
		if !errors.Is(err, want) {
			t.Errorf("Open(%s): %v, want %v", url, err, want)
		} else if want != ErrInput && !strings.Contains(err.Error(), url) {
			t.Errorf("Open(%s): %q does not name the store", url, err)
		}
	}
}

func TestOpenForgottenNamesTheWayOut(t *testing.T) {
	dir := isolate(t)
	store := filepath.Join(dir, "store")
	url := "file://" + store
	s, err := Open(t.Context(), Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Volumes.Create(t.Context(), "a", 1<<20)
	if closeErr := s.Close(t.Context()); err != nil || closeErr != nil {
		t.Fatal(err, closeErr)
	}
	if err := os.RemoveAll(store); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Config{URL: url})
	if !errors.Is(err, pool.ErrForgotten) || !strings.Contains(err.Error(), "kvbfs pool forget "+url) {
		t.Fatalf("after the store was emptied: %v", err)
	}
	state, err := StateDir()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := pool.Forget(state, url); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(t.Context(), Config{URL: url}); err != nil {
		t.Fatalf("after it was forgotten: %v", err)
	}
	s.Close(context.Background())
}

func TestRefusedErrorListsFixes(t *testing.T) {
	err := &RefusedError{URL: "u", Findings: []kvstore.Finding{
		{Server: "h:1", Severity: kvstore.Refuse, What: "evicts", Fix: "-M"},
		{Server: "h:1", Severity: kvstore.Info, What: "old"},
	}}
	text := err.Error()
	if !strings.Contains(text, "evicts") || !strings.Contains(text, "fix: -M") || !strings.Contains(text, "--dangerous") || strings.Contains(text, "old") {
		t.Errorf("%s", text)
	}
}

func TestDirs(t *testing.T) {
	dir := isolate(t)
	run, err := RuntimeDir()
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(run)
	if err != nil || fi.Mode() != fs.ModeDir|0o700 {
		t.Fatalf("%v, %v; want a directory of mode 0700", fi.Mode(), err)
	}
	if err := os.Chmod(run, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := RuntimeDir(); err == nil {
		t.Error("a runtime directory that others may write to was taken")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KVBFS_STATE_DIR", link)
	if _, err := StateDir(); err == nil {
		t.Error("a symbolic link was taken as the state directory")
	}
	t.Setenv("KVBFS_STATE_DIR", "relative")
	if _, err := StateDir(); !errors.Is(err, ErrInput) {
		t.Errorf("relative state directory: %v", err)
	}
	if os.Geteuid() == 0 {
		foreign := filepath.Join(dir, "foreign")
		if err := errors.Join(os.Mkdir(foreign, 0o700), os.Chown(foreign, 1, 1)); err != nil {
			t.Fatal(err)
		}
		t.Setenv("KVBFS_STATE_DIR", foreign)
		if _, err := StateDir(); err == nil {
			t.Error("somebody else's directory was taken")
		}
	}
}

func TestDefaultURL(t *testing.T) {
	t.Setenv("KVBFS_STORE", "mem:")
	if url, source := DefaultURL(); url != "mem:" || source != "KVBFS_STORE" {
		t.Errorf("%q from %q", url, source)
	}
	t.Setenv("KVBFS_STORE", "")
	url, source := DefaultURL()
	if source != "default" || !strings.HasPrefix(url, "file:///") {
		t.Errorf("%q from %q", url, source)
	}
	if got, err := Canonical(""); err != nil || got != url {
		t.Errorf("Canonical of the default %q is %q, %v", url, got, err)
	}
}

func BenchmarkCanonical(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Canonical("memcached://h:11211,h2:11211/pool"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOuterUser(t *testing.T) {
	for uidMap, want := range map[string]int{
		"         0          0 4294967295\n": 0, // no namespace
		"         0       1000          1\n": 1000,
		"         0      65534          1\n": 65534,
		"0 1000 1\n1 100000 65536\n":         1000, // root of a rootless container
		"0 100000 65536\n":                   0,    // root of a container with users of its own
		"":                                   0,
	} {
		if got := outerUser(uidMap); got != want {
			t.Errorf("outerUser(%q) = %d, want %d", uidMap, got, want)
		}
	}
}
