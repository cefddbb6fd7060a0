//go:build e2e

package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestFioVerify writes blocks of random sizes with checksums in them and reads
// them back, on the image and on the loop device.
func TestFioVerify(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "fio")
	jobs := filepath.Join(rig.ModuleRoot(t), "test", "fio")
	eachStore(t, 3*time.Minute, 1024, func(t *testing.T, r *rig.Rig, store string) {
		r.Create(store, "v", "256M")
		m := r.Mount(store)
		fio := func(job, target string) {
			t.Helper()
			r.Must(rig.Cmd{Args: []string{"fio", "--minimal", filepath.Join(jobs, job)}, Dir: r.Dir,
				Env: []string{"TARGET=" + target}})
		}
		fio("verify-file.fio", m.Image("v"))
		t.Run("loop", func(t *testing.T) {
			rig.RequireLoop(t)
			dev := m.Attach("v")
			fio("verify-device.fio", dev)
			r.Detach(dev)
		})
		m.Umount()
	})
}
