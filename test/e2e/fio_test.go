//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestFioVerify writes blocks of random sizes with checksums in them and reads
// them back, on the image and on the loop device.
func TestFioVerify(t *testing.T) {
	rig.RequireFUSE(t)
	eachStore(t, 3*time.Minute, 1024, fioVerify)
}

func fioVerify(t *testing.T, r *rig.Rig, store string) {
	rig.Require(t, "fio")
	r.Create(store, "v", "256M")
	m := r.Mount(store)
	seed := rig.Seed(t) >> 1 // fio's are signed
	fio := func(job, target string, more ...string) {
		t.Helper()
		seed++
		r.Must(rig.Cmd{Args: append([]string{"fio", "--minimal", fmt.Sprintf("--randseed=%d", seed)},
			append(more, filepath.Join(rig.ModuleRoot(t), "test", "fio", job))...),
			Dir: r.Dir, Env: []string{"TARGET=" + target}})
	}
	fio("verify-file.fio", m.Image("v"))
	t.Run("loop", func(t *testing.T) {
		rig.RequireLoop(t)
		dev := m.Attach("v")
		fio("verify-device.fio", dev)
		// From 512 bytes on, by way of the page cache, which is dropped before
		// what was written is read back.
		fio("verify-cached.fio", dev, "--do_verify=0")
		seed-- // the same blocks
		r.Run("blockdev", "--flushbufs", dev)
		fio("verify-cached.fio", dev, "--verify_only=1")
		r.Detach(dev)
	})
	m.Umount()
}
