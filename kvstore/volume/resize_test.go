package volume

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// meanwhile calls its hook once, before the next change of a record.
type meanwhile struct {
	kvstore.Store
	hook atomic.Pointer[func()]
}

func (m *meanwhile) Control() kvstore.Control { return meanwhileControl{m.Store.Control(), m} }

type meanwhileControl struct {
	kvstore.Control
	m *meanwhile
}

func (c meanwhileControl) before() {
	if f := c.m.hook.Swap(nil); f != nil {
		(*f)()
	}
}

func (c meanwhileControl) Add(ctx context.Context, server int, name string, value []byte) error {
	c.before()
	return c.Control.Add(ctx, server, name, value)
}

func (c meanwhileControl) Swap(ctx context.Context, server int, name string, old kvstore.Record, value []byte) error {
	c.before()
	return c.Control.Swap(ctx, server, name, old, value)
}

// TestResizeAgainstGrowth: somebody else makes a volume larger, and writes to it, after a
// resize has seen its size and before it has the lease. What was to grow would shrink.
func TestResizeAgainstGrowth(t *testing.T) {
	const small, between, large = 10 * kvstore.BlockSize, 20 * kvstore.BlockSize, 30 * kvstore.BlockSize
	for name, c := range map[string]struct {
		open, shrink bool
		err          error
		size         int64
	}{
		"without consent": {err: ErrShrink, size: large},
		"open here":       {open: true, shrink: true, err: ErrInUse, size: large},
		"with consent":    {shrink: true, size: between},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "mem")
			r.create("v", small)
			st := &meanwhile{Store: r.store}
			late := r.machineOn(st, Options{Stale: c.open}) // else nobody could let it grow
			var stale *Volume
			if c.open {
				var err error
				stale, err = late.Open(ctx, "v", false)
				must(t, err)
			}
			want := pattern(kvstore.BlockSize, 1)
			grow := func() {
				must(t, r.set.Resize(ctx, "v", large, false))
				v := r.open("v")
				r.write(v, large-kvstore.BlockSize, want)
				must(t, v.Close(ctx))
			}
			st.hook.Store(&grow)
			if err := late.Resize(ctx, "v", between, c.shrink); !errors.Is(err, c.err) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if st.hook.Load() != nil {
				t.Fatal("nobody made it larger meanwhile")
			}
			if stale != nil {
				if stale.Writable() {
					t.Error("what was open for reading can be written to")
				}
				if _, held, err := r.pool.Holder(ctx, "v"); held || err != nil {
					t.Error("the lease is held:", held, err)
				}
				must(t, stale.Close(ctx))
			}
			v, err := r.set.Open(ctx, "v", false)
			must(t, err)
			if v.Size() != c.size {
				t.Errorf("it has %d bytes, want %d", v.Size(), c.size)
			}
			if c.size == large && !bytes.Equal(r.read(v, large-kvstore.BlockSize, kvstore.BlockSize), want) {
				t.Error("what was written meanwhile is gone")
			}
			must(t, v.Close(ctx))
		})
	}
}
