//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestUpBesideADeadXFS: the daemon dies while a process with a mount namespace of
// its own has the XFS mounted. `up` cannot mount the UUID a second time; it says who
// has it and what to do, leaves nothing, and succeeds once that is done.
func TestUpBesideADeadXFS(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "mkfs.xfs", "unshare")
	r := rig.New(t, 3*time.Minute)
	store, at := r.Memcached(256).URL(), r.Mkdir("at")
	r.Kvbfs("up", "disk", "--size", "1G", "--fs", "xfs", "--at", at, "--store", store)
	must(t, os.WriteFile(filepath.Join(at, "file"), []byte("kept\n"), 0o644))
	r.Run("sync", "-f", at)
	// It must not hold what other tests have mounted meanwhile.
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `
for d in $(cut -d' ' -f5 /proc/self/mountinfo | grep /kvbfs-e2e- | grep -v "^$0/"); do umount -l "$d" 2>/dev/null; done
echo there; exec sleep 600`, r.Dir)
	holder.Env = r.Env()
	out, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if _, err := out.Read(make([]byte, 6)); err != nil { // "there"
		t.Fatal(err)
	}
	pid := r.OnlyDaemon()
	r.Run("kill", "-9", strconv.Itoa(pid))
	rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(pid) })

	res := r.TryKvbfs("up", "disk", "--at", at, "--store", store)
	for _, want := range []string{"same UUID", "process " + strconv.Itoa(holder.Process.Pid), "nouuid", at} {
		if res.Code != 1 || !strings.Contains(res.Stderr, want) {
			t.Errorf("up beside a dead XFS: status %d, want 1 and %q\n%s", res.Code, want, res.All())
		}
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	// The kernel ends the dead file system in its own time.
	rig.Eventually(t, 60*time.Second, "up succeeds once the dead file system is let go", func() bool {
		return r.TryKvbfs("up", "disk", "--at", at, "--store", store).Code == 0
	})
	if text, err := os.ReadFile(filepath.Join(at, "file")); err != nil || string(text) != "kept\n" {
		t.Errorf("after that: %q, %v", text, err)
	}
	r.Kvbfs("down", "disk")
}
