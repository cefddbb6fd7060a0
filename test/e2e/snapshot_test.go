//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// TestBackInTime: a Redis that comes back from an old snapshot lost what was
// acknowledged since. Flushes fail, status says why, and what is gone is EIO.
func TestBackInTime(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	server := redistest.Start(t)
	r.Create(server.URL(), "v", "16M")
	m := r.Mount(server.URL())
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	server.Do("SAVE")
	buf := rig.Aligned(rig.BlockSize)
	for i := int64(32); i < 96; i++ {
		rig.Stamp(buf, i, 2)
		if err := f.WriteAt(buf, i*rig.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	server.Restart()
	for range 2 {
		if err := f.Sync(); err == nil {
			t.Error("a flush succeeds though the server lacks what an earlier one promised")
		}
	}
	want := rig.Aligned(rig.BlockSize)
	for i := range int64(96) {
		err := f.ReadAt(buf, i*rig.BlockSize)
		if i >= 64 {
			if err == nil {
				t.Fatalf("block %d is lost and reads without an error", i)
			}
			continue
		}
		rig.Stamp(want, i, 1)
		if err != nil || string(buf) != string(want) {
			t.Fatalf("block %d is not the one of the snapshot: %v", i, err)
		}
	}
	if out := r.Kvbfs("status"); !strings.Contains(out, "FLUSH FAILS") || !strings.Contains(out, "went back in time") {
		t.Errorf("status does not say so:\n%s", out)
	}
	f.Close()
	r.Try("umount", m.Dir)
}
