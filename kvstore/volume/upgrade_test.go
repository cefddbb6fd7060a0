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
