//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// enableURing is the parameter of the kernel that offers FUSE over io_uring.
const enableURing = "/sys/module/fuse/parameters/enable_uring"

// TestURing: the transport is what was asked for, io_uring being the default
// where it is to be had, and the mounts of others are not concerned. That all
// else works over both is shown by `make e2e`, which runs every test on each.
func TestURing(t *testing.T) {
	rig.RequireFUSE(t)
	rig.RequireRoot(t)
	if _, err := os.Stat(enableURing); err != nil {
		t.Skip("this kernel has no FUSE over io_uring (Linux 6.14)")
	}
	r := rig.New(t, time.Minute)
	store := r.Memcached(64).URL()
	for _, transport := range []string{"", "auto", "uring", "dev"} {
		r.Transport = transport
		m := r.Mount(store)
		if want := transport != "dev"; overRings(t, m.PID()) != want {
			t.Errorf("mounted with --transport=%q: the daemon has a ring: %v\n%s", transport, !want, r.Kvbfs("status"))
		}
		m.Umount()
	}
	// A mount of another program may change it at the same moment, and back.
	r.Transport = "auto"
	rig.Eventually(t, 30*time.Second, "a mount leaves "+enableURing+" as it was: it concerns mounts of others", func() bool {
		before, err := os.ReadFile(enableURing)
		must(t, err)
		r.Mount(store).Umount()
		after, err := os.ReadFile(enableURing)
		must(t, err)
		return string(before) == string(after)
	})
}

// overRings says whether a process has an io_uring open.
func overRings(t *testing.T, pid int) bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("process %d has no descriptors: %v", pid, err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.Contains(to, "io_uring") {
			return true
		}
	}
	return false
}
