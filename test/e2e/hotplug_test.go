//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestHotUnplug: a CPU goes and comes back while its users read and write, also
// one that was away when the volume was mounted: its queue has an entry all the
// same. Nothing fails and nothing hangs.
func TestHotUnplug(t *testing.T) {
	rig.RequireFUSE(t)
	const cpu = "/sys/devices/system/cpu/cpu1/online"
	set := func(to string) error { return os.WriteFile(cpu, []byte(to), 0) }
	if err := set("1"); err != nil {
		t.Skipf("no second CPU that may be switched off: %v", err)
	}
	t.Cleanup(func() {
		if err := set("1"); err != nil {
			t.Errorf("CPU 1 stays off: %v", err)
		}
	})
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away at mount=%v", away), func(t *testing.T) {
			r := rig.New(t, 5*time.Minute)
			store := r.Memcached(64).URL()
			r.Create(store, "v", "8M")
			if away {
				if err := set("0"); err != nil {
					t.Skipf("CPU 1 cannot be switched off: %v", err)
				}
			}
			m := r.Mount(store)
			f := rig.Direct(t, m.Image("v"))
			defer f.Close()
			var stop atomic.Bool
			var rounds atomic.Int64
			var users sync.WaitGroup
			for w := range int64(4) {
				users.Go(func() {
					buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
					for v := uint64(1); !stop.Load(); v++ {
						for b := w; b < 256; b += 4 {
							rig.Stamp(buf, b, v)
							rig.Stamp(want, b, v)
							if err := f.WriteAt(buf, b*rig.BlockSize); err != nil {
								t.Errorf("write: %v", err)
								return
							}
							if err := f.ReadAt(buf, b*rig.BlockSize); err != nil || string(buf) != string(want) {
								t.Errorf("read: %v, or other data", err)
								return
							}
						}
						rounds.Add(1)
					}
				})
			}
			for i := range 6 { // off, on, off ... on
				before := rounds.Load()
				if err := set(fmt.Sprint(i % 2)); err != nil {
					t.Errorf("switching CPU 1: %v", err)
				}
				rig.Eventually(t, time.Minute, "the users get on", func() bool { return rounds.Load() >= before+2 })
			}
			stop.Store(true)
			users.Wait()
		})
	}
}
