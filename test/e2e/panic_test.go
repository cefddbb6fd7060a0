//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestPanic: a panic in the middle of writes, of a flush and of the reaper gives
// errors and stacks in the log; the daemon goes on, nothing hangs, and what was
// acknowledged is there.
func TestPanic(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*time.Minute)
	r.Faulty("write kind=block nth=101 panic; write kind=map skip=6 nth=7 panic; discard times=1 panic")
	store := r.Memcached(256).URL()
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	acked := map[int64]bool{}
	failed := 0
	for i := range int64(1000) {
		rig.Stamp(buf, i, 1)
		if f.WriteAt(buf, i*rig.BlockSize) == nil {
			acked[i] = true
		} else {
			failed++
		}
		if i%50 == 49 && f.Sync() != nil {
			failed++
		}
		if i == 500 {
			must(t, f.Punch(900*rig.BlockSize, 100*rig.BlockSize)) // holes, and the reaper's work
			for j := range int64(8) {
				acked[j] = false
			}
			must(t, f.Punch(0, 8*rig.BlockSize))
		}
	}
	if failed == 0 || len(acked) < 900 {
		t.Errorf("%d of 1000 writes acknowledged, %d requests failed: not the faults that were planted", len(acked), failed)
	}
	for i, there := range acked {
		if !there {
			continue
		}
		rig.Stamp(want, i, 1)
		if err := f.ReadAt(buf, i*rig.BlockSize); err != nil || string(buf) != string(want) {
			t.Fatalf("block %d after the panics: %v", i, err)
		}
	}
	if !rig.Alive(m.PID()) {
		t.Fatal("the daemon is gone")
	}
	text := ""
	logs, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
	for _, name := range logs {
		b, _ := os.ReadFile(name)
		text += string(b)
	}
	if !strings.Contains(text, "fault: planted") || !strings.Contains(text, "goroutine ") {
		t.Errorf("the log tells of no panic with its stack:\n%.2000s", text)
	}
	f.Close()
	rig.Eventually(t, 60*time.Second, "the unmount succeeds between panics", func() bool {
		return r.TryKvbfs("umount", m.Dir).Code == 0
	})
}
