package volume

import (
	"errors"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// other is a second daemon that shares no local state with the first.
func (r *rig) other() *Set {
	opt := r.set.opt
	opt.RuntimeDir = r.t.TempDir()
	return New(r.pool, r.store, opt)
}

// TestFailedUpgradeAfterGrowth: a volume that is open for reading has grown
// elsewhere; opening it for writing fails. It goes on with the size that its map
// has.
func TestFailedUpgradeAfterGrowth(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Stale = true // else nobody could let it grow
	r.create("v", 1<<20)
	v, err := r.set.Open(ctx, "v", false)
	must(t, err)
	must(t, r.other().Resize(ctx, "v", 1<<30, false))
	after := func(ops []*kvstore.Op) { ops[0].Err = kvstore.ErrUnreachable }
	r.store.after.Store(&after)
	if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, kvstore.ErrUnreachable) {
		t.Fatal(err)
	}
	r.store.after.Store(nil)
	b := make([]byte, kvstore.BlockSize)
	if err := r.do(Request{Kind: Read, Vol: v, Off: 1 << 29, Data: b}); !errors.Is(err, ErrOutside) {
		t.Fatal(err)
	}
	if w := r.open("v"); w.Size() != 1<<30 {
		t.Fatal(w.Size())
	}
	must(t, r.do(Request{Kind: Read, Vol: v, Off: 1 << 29, Data: b}))
	must(t, v.Close(ctx))
}

// TestStaleReader: what another daemon discarded while a volume was open for
// reading here without a lease gives errors, as documented, but nobody calls it
// damaged.
func TestStaleReader(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<20)
	w := r.open("v")
	r.write(w, 0, pattern(4096, 1))
	must(t, w.Close(ctx))
	r.set.opt.Stale = true
	v, err := r.set.Open(ctx, "v", false)
	must(t, err)
	other := r.other()
	w, err = other.Open(ctx, "v", true)
	must(t, err)
	must(t, r.do(Request{Kind: Discard, Vol: w, N: 4096}))
	must(t, w.Close(ctx)) // deletes the key
	b := make([]byte, kvstore.BlockSize)
	if err := r.do(Request{Kind: Read, Vol: v, Data: b}); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	rec, err := r.pool.Volume(ctx, "v")
	must(t, err)
	if rec.Damaged {
		t.Fatal("a volume that lost nothing is marked as damaged")
	}
}
