//go:build e2e

package e2e

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestPartial: eight writers, each with a sector of its own in every block, write
// the same blocks at the same time. Each write is a read-modify-write of the
// whole block; none may undo another.
func TestPartial(t *testing.T) {
	rig.RequireFUSE(t)
	everyStore(t, time.Minute, 128, func(t *testing.T, r *rig.Rig, store string) {
		const writers, sector, blocks, rounds = 8, 512, 16, 40
		r.Create(store, "v", "16M")
		m := r.Mount(store)
		f := rig.Direct(t, m.Image("v"))
		var wg sync.WaitGroup
		for w := range int64(writers) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				buf := rig.Aligned(sector)
				for round := range rounds {
					for i := range int64(blocks) {
						for k := range buf {
							buf[k] = byte(1 + int(w) + writers*round%200)
						}
						if err := f.WriteAt(buf, i*rig.BlockSize+w*sector); err != nil {
							t.Error(err)
							return
						}
					}
				}
			}()
		}
		wg.Wait()
		got := rig.Aligned(rig.BlockSize)
		for i := range int64(blocks) {
			if err := f.ReadAt(got, i*rig.BlockSize); err != nil {
				t.Fatal(err)
			}
			for w := range writers {
				want := bytes.Repeat([]byte{byte(1 + w + writers*(rounds-1)%200)}, sector)
				if !bytes.Equal(got[w*sector:(w+1)*sector], want) {
					t.Fatalf("block %d: the last write of writer %d was undone by another's: %#x, want %#x", i, w, got[w*sector], want[0])
				}
			}
		}
		f.Close()
		m.Umount()
	})
}
