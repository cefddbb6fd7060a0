//go:build e2e

package e2e

import (
	"regexp"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestWorkersFollowQuota: by default there are as many workers as CPUs that may be used.
// Go's runtime takes a container's quota (cpu.max, cpu.cfs_quota_us) into GOMAXPROCS at
// its start, never below 2; the variable stands in for a machine with more CPUs.
func TestWorkersFollowQuota(t *testing.T) {
	rig.RequireFUSE(t)
	rig.RequireRoot(t)
	r := rig.New(t, time.Minute)
	store := r.Memcached(64).URL()
	workers := func(args ...string) string {
		t.Helper()
		dir := r.Mkdir("mnt")
		out := r.Kvbfs(append(r.MountArgs(dir, "--store", store), args...)...)
		r.Kvbfs("umount", dir)
		m := regexp.MustCompile(`workers +(\d+);`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("mount does not tell its workers:\n%s", out)
		}
		return m[1]
	}
	r.Setenv("GOMAXPROCS", "1")
	if n := workers(); n != "1" {
		t.Errorf("%s workers for one CPU that may be used", n)
	}
	if n := workers("--workers=3"); n != "3" {
		t.Errorf("%s workers where 3 are asked for", n)
	}
}
