package doctor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func isolate(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("KVBFS_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("KVBFS_RUNTIME_DIR", filepath.Join(dir, "run"))
	return dir
}

func TestKernelVersion(t *testing.T) {
	for in, want := range map[string]int{"6.18.3-generic": 618, "5.4.0": 504, "4.19.0-27-amd64": 419, "6.1+": 601} {
		if got, ok := kernelVersion(in); !ok || got != want {
			t.Errorf("kernelVersion(%q) = %d, %v; want %d", in, got, ok, want)
		}
	}
	if v, ok := kernelVersion("next"); ok {
		t.Errorf("kernelVersion of nonsense = %d", v)
	}
}

// Whatever this machine has, each finding says something and failures have a fix.
func TestMachineFindingsAreWhole(t *testing.T) {
	isolate(t)
	list := Machine(t.Context())
	areas := map[string]bool{}
	for _, f := range list {
		areas[f.Area] = true
		if f.What == "" || (f.Level == Warn || f.Level == Fail) && f.Fix == "" && f.Area != "kernel" {
			t.Errorf("%+v", f)
		}
	}
	for _, a := range []string{"kernel", "fuse", "loop", "privileges", "memory", "tools"} {
		if !areas[a] {
			t.Errorf("nothing about %s", a)
		}
	}
}

func TestStore(t *testing.T) {
	dir := isolate(t)
	if _, err := Store(t.Context(), "etcd://h", t.Logf); !errors.Is(err, stack.ErrInput) {
		t.Errorf("unknown store: %v", err)
	}
	list, err := Store(t.Context(), "file://"+filepath.Join(dir, "store"), t.Logf)
	if err != nil || Failed(list) {
		t.Errorf("a new file store: %+v, %v", list, err)
	}
	// A port on which nobody listens: it was free a moment ago.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	list, err = Store(t.Context(), "memcached://"+addr, t.Logf)
	if err != nil || !Failed(list) || !strings.Contains(list[0].What, addr) || !strings.Contains(list[0].Fix, "memcached -M -F") || !strings.HasSuffix(list[0].Fix, " -l "+host+" -p "+port) {
		t.Errorf("a server that is down: %+v, %v", list, err)
	}
	if f := list[0]; strings.Contains(f.What, "doctor") || strings.Contains(f.Fix, "-u nobody") != (os.Geteuid() == 0) {
		t.Errorf("it names itself, or not the user that root needs: %+v", f)
	}
	socket := filepath.Join(dir, "none.sock")
	list, err = Store(t.Context(), "memcached+unix://"+socket, t.Logf)
	if err != nil || !Failed(list) || !strings.HasSuffix(list[0].Fix, " -s "+socket+" -a 0600") || strings.Contains(list[0].Fix, "-u root") != (os.Geteuid() == 0) {
		t.Errorf("a socket that is not there: %+v, %v", list, err)
	}
}
