package volume

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// TestHolesCostNothing: reads of holes and discards of a huge volume send nothing.
func TestHolesCostNothing(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<40)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	before := r.mem().Counters().Requests()
	if got := r.read(v, 1<<39, 1<<20); !zero(got) {
		t.Fatal("a hole is not zeros")
	}
	must(t, r.do(Request{Kind: Discard, Vol: v, Off: 4096, N: 1<<40 - 4096}))
	must(t, r.do(Request{Kind: Write, Vol: v, Off: 1 << 38, Data: make([]byte, 1<<20)}))
	must(t, r.do(Request{Kind: Write, Vol: v, Off: 1<<38 + 5, Data: make([]byte, 5)}))
	if now := r.mem().Counters().Requests(); now != before {
		t.Fatalf("%d requests", now-before)
	}
	if v.Allocated() != 4096 {
		t.Fatal(v.Allocated())
	}
	if c := v.Counters(); c.HoleBlocks != 256 || c.ZeroBlocks != 256 {
		t.Fatalf("%+v", c)
	}
}

// TestPageBeforeAck: when the first write of a page's range is acknowledged, the
// store has the page and its parents.
func TestPageBeforeAck(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 6<<40) // three levels
	v := r.open("v")
	const lba = uint64(bitsPerPage)*bitsPerPage + 3*bitsPerPage + 77
	r.write(v, int64(lba)*4096, pattern(4096, 1))
	has := map[kvstore.Key]bool{}
	for _, k := range r.mem().Keys() {
		has[k] = true
	}
	for _, id := range []pageID{{0, lba / bitsPerPage}, {1, 1}, {2, 0}} {
		if !has[id.key(v.layer)] {
			t.Errorf("%s is not stored", id.key(v.layer))
		}
	}
	// A second page under the same parent, and one more after a crash.
	r.write(v, int64(lba+bitsPerPage)*4096, pattern(4096, 2))
	r.crash()
	v = r.open("v")
	r.write(v, 0, pattern(4096, 3))
	for i, at := range []uint64{lba, lba + bitsPerPage, 0} {
		if got := r.read(v, int64(at)*4096, 4096); !bytes.Equal(got, pattern(4096, byte(i+1))) {
			t.Errorf("block %d is wrong after a crash of the daemon", at)
		}
	}
	r.flush(v)
	r.crash()
	r.loseState()
	v = r.open("v")
	for i, at := range []uint64{lba, lba + bitsPerPage, 0} {
		if got := r.read(v, int64(at)*4096, 4096); !bytes.Equal(got, pattern(4096, byte(i+1))) {
			t.Errorf("block %d is wrong after a crash of the machine", at)
		}
	}
	must(t, v.Close(ctx))
	must(t, r.set.Remove(ctx, "v", nil))
	if keys := r.mem().Keys(); len(keys) != 0 {
		t.Errorf("%d keys are left: %v", len(keys), keys)
	}
}

// TestGrowth: a volume grows from one level to three while it is open.
func TestGrowth(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	sizes := []int64{1 << 20, bitsPerPage * 4096, bitsPerPage*4096 + 4096, 1 << 40, 5 << 40, pool.MaxSize}
	for i, size := range sizes {
		must(t, r.set.Resize(ctx, "v", size, false))
		if v.Size() != size {
			t.Fatal(v.Size())
		}
		r.write(v, size-4096, pattern(4096, byte(i+2)))
		if i%2 == 0 {
			must(t, v.Close(ctx))
		} else {
			r.crash()
		}
		v = r.open("v")
		for k := range i + 1 {
			if got := r.read(v, sizes[k]-4096, 4096); !bytes.Equal(got, pattern(4096, byte(k+2))) {
				t.Fatalf("size %d: block at %d is wrong", size, sizes[k]-4096)
			}
		}
	}
	if v.Allocated() != int64(len(sizes)+1)*4096 {
		t.Fatal(v.Allocated())
	}
	if err := r.set.Resize(ctx, "v", 4096, true); !errors.Is(err, ErrInUse) {
		t.Fatal(err)
	}
	must(t, v.Close(ctx))
	if err := r.set.Resize(ctx, "v", 4096, false); !errors.Is(err, ErrShrink) {
		t.Fatal(err)
	}
	must(t, r.set.Resize(ctx, "v", 4096, true))
	in, err := r.set.Info(ctx, "v")
	must(t, err)
	if in.Size != 4096 || in.Allocated != 4096 {
		t.Fatalf("%+v", in)
	}
	must(t, r.set.Resize(ctx, "v", 1<<20, false))
	v = r.open("v")
	if got := r.read(v, 4096, 1<<20-4096); !zero(got) {
		t.Fatal("what was cut off is back")
	}
	blocks := 0
	for _, k := range r.mem().Keys() {
		if k.Kind == kvstore.KindBlock {
			blocks++
		}
	}
	if blocks != 1 {
		t.Fatalf("%d blocks are stored", blocks)
	}
}

func TestOutside(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 8192)
	v := r.open("v")
	for _, req := range []Request{
		{Kind: Read, Off: 8192, Data: make([]byte, 1)},
		{Kind: Write, Off: 8191, Data: make([]byte, 2)},
		{Kind: Write, Off: -1, Data: make([]byte, 1)},
		{Kind: Discard, Off: 4096, N: 1 << 62},
		{Kind: Zero, Off: 1<<63 - 1, N: 1},
		{Kind: Zero, Off: 0, N: -1},
	} {
		req.Vol = v
		if err := r.do(req); !errors.Is(err, ErrOutside) {
			t.Errorf("%d %d: %v", req.Kind, req.Off, err)
		}
	}
	must(t, r.do(Request{Kind: Read, Vol: v, Off: 8192}))
	if err := r.do(Request{Kind: 99, Vol: v}); !errors.Is(err, kvstore.ErrInvalid) {
		t.Error(err)
	}
}

// TestOneWriter: a second Set of this machine cannot write, nor read meanwhile.
func TestOneWriter(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 8192)
		v := r.open("v")
		other := New(r.pool, r.store, r.set.opt)
		if _, err := other.Open(ctx, "v", true); !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		if _, err := other.Open(ctx, "v", false); !errors.Is(err, pool.ErrHeld) {
			t.Error(err)
		}
		if err := other.Remove(ctx, "v", nil); !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		must(t, v.Close(ctx))
		w, err := other.Open(ctx, "v", true)
		must(t, err)
		must(t, w.Close(ctx))
		if err := w.Close(ctx); !errors.Is(err, kvstore.ErrClosed) {
			t.Error(err)
		}
	})
}

// TestReadOnlyAfterCrash: opening for reading first stores what a crash left.
func TestReadOnlyAfterCrash(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 1<<20)
		v := r.open("v")
		r.write(v, 0, pattern(4096, 1))
		r.crash()
		v, err := r.set.Open(ctx, "v", false)
		must(t, err)
		if got := r.read(v, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("what was acknowledged is not there")
		}
	})
}

// TestWhere looks at blocks of an open, a closed and a damaged volume.
func TestWhere(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 1<<20)
		v := r.open("v")
		r.write(v, 4096, pattern(4096, 1))
		for range 2 {
			pl, err := r.set.Where(ctx, "v", 5000)
			must(t, err)
			if !pl.Present || !pl.Stored || pl.CRC == 0 || pl.Err != nil || pl.Location.Key == "" {
				t.Fatalf("%+v", pl)
			}
			pl, err = r.set.Where(ctx, "v", 0)
			must(t, err)
			if pl.Present || pl.Stored || pl.Err != nil {
				t.Fatalf("%+v", pl)
			}
			if v.refs > 0 {
				must(t, v.Close(ctx))
			}
		}
		list, err := r.set.List(ctx)
		must(t, err)
		if len(list) != 1 || list[0].Open || list[0].Name != "v" {
			t.Fatalf("%+v", list)
		}
	})
}

// TestInterruptedRemoval: a removal that failed in the middle is finished later.
func TestInterruptedRemoval(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<30)
	v := r.open("v")
	for i := range int64(20) {
		r.write(v, i<<20, pattern(100*4096, 1))
	}
	must(t, v.Close(ctx))
	calls := 0
	after := func(ops []*kvstore.Op) {
		if calls++; calls == 4 {
			ops[len(ops)-1].Err = kvstore.ErrUnreachable
		}
	}
	r.store.after.Store(&after)
	if err := r.set.Remove(ctx, "v", nil); !errors.Is(err, kvstore.ErrUnreachable) {
		t.Fatal(err)
	}
	r.store.after.Store(nil)
	if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, pool.ErrNoVolume) {
		t.Fatal(err)
	}
	must(t, r.set.ResumeRemovals(ctx))
	if n := r.mem().Blocks(); n != 0 {
		t.Fatalf("%d keys are left", n)
	}
	list, err := r.set.List(ctx)
	must(t, err)
	if len(list) != 0 {
		t.Fatal(list)
	}
}

// TestFailedRecovery: a recovery that could not store its pages is tried again by
// the next open, and nothing that was acknowledged is lost.
func TestFailedRecovery(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.crash()
	after := func(ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Read {
			ops[0].Err = kvstore.ErrUnreachable
		}
	}
	r.store.after.Store(&after)
	for range 2 {
		if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, kvstore.ErrUnreachable) {
			t.Fatal(err)
		}
	}
	r.store.after.Store(nil)
	v = r.open("v")
	if got := r.read(v, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
		t.Fatal("what was acknowledged is not there")
	}
}

// TestFence: while the lease is not valid writes and flushes wait, and go on when
// it was renewed.
func TestFence(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("v", 1<<20)
		v := r.open("v")
		r.write(v, 0, pattern(4096, 1))
		fence := v.fence.Load()
		var closed kvstore.Fence
		tries := 0
		before := func(_ context.Context, ops []*kvstore.Op) {
			for _, op := range ops {
				if op.Code != kvstore.Read && op.Fence == fence && tries < 3 {
					op.Fence = &closed
					tries++
				}
			}
		}
		r.store.before.Store(&before)
		r.write(v, 100, pattern(9000, 2))
		must(t, r.do(Request{Kind: Discard, Vol: v, Off: 8192, N: 8192}))
		r.flush(v)
		r.store.before.Store(nil)
		want := append(pattern(4096, 1)[:100], pattern(9000, 2)[:8092]...)
		if got := r.read(v, 0, 8192); !bytes.Equal(got, want) {
			t.Fatal(firstDiff(got, want))
		}
		if tries != 3 {
			t.Fatal(tries)
		}
	})
}

// failingSwaps fails the changes of volume records while on is set.
type failingSwaps struct {
	kvstore.Store
	on bool
}

type failingControl struct {
	kvstore.Control
	s *failingSwaps
}

func (s *failingSwaps) Control() kvstore.Control { return failingControl{s.Store.Control(), s} }

func (c failingControl) Swap(ctx context.Context, n int, name string, old kvstore.Record, value []byte) error {
	if c.s.on && strings.Contains(name, ":volume:") {
		return kvstore.ErrUnreachable
	}
	return c.Control.Swap(ctx, n, name, old, value)
}

// TestFailedRemovalAfterCrash: a removal that could not begin leaves what a crash
// left to be recovered.
func TestFailedRemovalAfterCrash(t *testing.T) {
	st := &failingSwaps{Store: mem.New(mem.Config{})}
	r := newRigOn(t, "failing", st)
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.crash()
	st.on = true
	if err := r.set.Remove(ctx, "v", nil); !errors.Is(err, kvstore.ErrUnreachable) {
		t.Fatal(err)
	}
	st.on = false
	v = r.open("v")
	if got := r.read(v, 0, 4096); !bytes.Equal(got, pattern(4096, 1)) {
		t.Fatal("what was acknowledged is not there")
	}
	must(t, v.Close(ctx))
	must(t, r.set.Remove(ctx, "v", nil))
}
