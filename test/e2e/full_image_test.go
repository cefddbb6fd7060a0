//go:build e2e

package e2e

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestFullImage is row 10 without a file system: on a full server new blocks get
// ENOSPC, overwrites and flushes succeed, what is there is whole, and a discard
// makes room again. TestFull has the journal.
func TestFullImage(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	fullImage(t, r, r.Memcached(16).Engine(), "v")
}

func fullImage(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	store := e.URL()
	r.Create(store, v, "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image(v))
	defer e.Full(12)()
	buf := rig.Aligned(rig.BlockSize)
	write := func(lba int64, version uint64) error {
		rig.Stamp(buf, lba, version)
		return f.WriteAt(buf, lba*rig.BlockSize)
	}
	stored := int64(0)
	var err error
	for ; err == nil && stored < 16384; stored++ {
		err = write(stored, 1)
	}
	stored--
	if !errors.Is(err, unix.ENOSPC) || stored < 1000 {
		t.Fatalf("block %d: %v, want ENOSPC", stored, err)
	}
	for i := range int64(20) {
		if err := write(10000+i, 1); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("new block %d on a full server: %v, want ENOSPC", i, err)
		}
	}
	for i := range stored {
		if err := write(i, 2); err != nil {
			t.Fatalf("overwriting block %d of %d: %v", i, stored, err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Errorf("flush on a full server: %v", err)
	}
	if whole, _, _ := holds(t, f, stored, 2); int64(whole) != stored {
		t.Errorf("%d of %d blocks are whole", whole, stored)
	}
	if n := counted(t, r, m, v); n["LostBlocks"]+n["CorruptBlocks"]+n["HealedBlocks"] != 0 {
		t.Errorf("counters: %v", n)
	}
	// A crash does not need room either.
	f.Close()
	m.Kill()
	m.Mount(store)
	f = rig.Direct(t, m.Image(v))
	if whole, _, _ := holds(t, f, stored, 2); int64(whole) != stored {
		t.Errorf("after a crash %d of %d blocks are whole", whole, stored)
	}
	if err := f.Punch(0, 200*rig.BlockSize); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, 30*time.Second, "there is room after a discard", func() bool {
		return write(10000, 3) == nil && write(10050, 3) == nil
	})
	f.Close()
	m.Umount()
}
