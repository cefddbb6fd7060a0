package sim

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// step is one operation of a list: unaligned, on one volume.
type step struct {
	kind volume.RequestKind
	off  int64
	n    int64
	data []byte
}

const metaSize = 96 * kvstore.BlockSize

// list makes the operations of a seed.
func list(seed uint64, n int) (steps []step) {
	rng := rand.New(rand.NewPCG(seed, 7))
	for range n {
		s := step{off: rng.Int64N(metaSize)}
		s.n = min(1+rng.Int64N(int64(1)<<rng.IntN(18)), metaSize-s.off)
		switch k := rng.IntN(20); {
		case k < 8:
			s.kind = volume.Read
		case k < 15:
			s.kind, s.data = volume.Write, make([]byte, s.n)
			if k < 14 { // else zeros
				for i := range s.data {
					s.data[i] = byte(rng.Uint32())
				}
			}
		case k < 17:
			s.kind = volume.Discard
		case k < 18:
			s.kind = volume.Zero
		default:
			s.kind, s.off, s.n = volume.Flush, 0, 0
		}
		steps = append(steps, s)
	}
	return steps
}

// play does the list on a disk and beside it on bytes; what is read must agree.
func play(t *testing.T, d *disk, steps []step) {
	t.Helper()
	w, err := d.set.Worker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	want := make([]byte, metaSize)
	do := func(i int, s step) []byte {
		r := &volume.Request{Kind: s.kind, Vol: d.v, Off: s.off, N: s.n, Data: s.data}
		if s.kind == volume.Read {
			r.Data = bytes.Repeat([]byte{0xee}, int(s.n))
		}
		w.Do(context.Background(), []*volume.Request{r})
		if r.Err != nil {
			t.Fatalf("step %d, kind %d at %d+%d: %v", i, s.kind, s.off, s.n, r.Err)
		}
		return r.Data
	}
	for i, s := range steps {
		got := do(i, s)
		part := want[s.off : s.off+s.n]
		switch s.kind {
		case volume.Read:
			if !bytes.Equal(got, part) {
				t.Fatalf("step %d: read at %d+%d differs", i, s.off, s.n)
			}
		case volume.Write:
			copy(part, s.data)
		case volume.Discard, volume.Zero:
			clear(part)
		}
	}
	if got := do(-1, step{kind: volume.Read, n: metaSize}); !bytes.Equal(got, want) {
		t.Fatal("the whole differs at the end")
	}
}

// stacks are what the list is played on over memcached.
var stacks = []struct {
	name        string
	connections int
	writeBack   writeback.Config
	cache       cache.Config
}{
	{"1", 1, writeback.Config{}, cache.Config{}},
	{"8", 8, writeback.Config{}, cache.Config{}},
	{"1-cache", 1, writeback.Config{}, cache.Config{Size: 200 << 10}},
	{"1-ahead", 1, writeback.Config{}, cache.Config{Size: 2 << 20, ReadAhead: 64 << 10}},
	// Four blocks are dirty at most, so writes go through beside some that are deferred;
	// and all of them are, until a flush.
	{"8-small-writeback", 8, writeback.Config{MaxDirty: 4 * kvstore.BlockSize, MaxAge: 3 * time.Millisecond}, cache.Config{}},
	{"1-writeback-ahead", 1, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour}, cache.Config{Size: 2 << 20, ReadAhead: 64 << 10}},
}

// TestMetamorphic: one operation list reads the same on every store, over one and
// many connections, on one and three servers, with and without a cache that reads
// ahead and write-back, whatever happens to the links.
func TestMetamorphic(t *testing.T) {
	first, n := seeds(t)
	for i := range max(1, n/12) {
		seed := first + uint64(i)
		steps := list(seed, 60)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Run("file", func(t *testing.T) {
				st, err := file.Open(t.TempDir(), file.Options{})
				if err != nil {
					t.Fatal(err)
				}
				play(t, openDisk(t, stack(t, st, writeback.Config{}, cache.Config{}), t.TempDir(), metaSize/kvstore.BlockSize), steps)
			})
			for _, servers := range []int{1, 3} {
				t.Run(fmt.Sprintf("mem-%d", servers), func(t *testing.T) {
					play(t, openDisk(t, stack(t, mem.New(mem.Config{Servers: servers}), writeback.Config{}, cache.Config{}), t.TempDir(), metaSize/kvstore.BlockSize), steps)
				})
				for _, c := range stacks {
					for _, plan := range Plans {
						t.Run(fmt.Sprintf("memcached-%d-%s-%s", servers, c.name, plan.Name), func(t *testing.T) {
							cryptotest.SetGlobalRandom(t, seed)
							synctest.Test(t, func(t *testing.T) {
								w := NewWorld(seed, plan, servers)
								st := stack(t, openSimulated(t, w, w, c.connections, ""), c.writeBack, c.cache)
								d := openDisk(t, st, t.TempDir(), metaSize/kvstore.BlockSize)
								w.Begin()
								play(t, d, steps)
								w.End()
							})
						})
					}
				}
			}
			if t.Failed() {
				t.Logf("again: KVBFS_SEED=%d KVBFS_SIM_SEEDS=1 go test -run TestMetamorphic ./test/sim/", seed)
			}
		})
	}
}
