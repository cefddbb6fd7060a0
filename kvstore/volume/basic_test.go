package volume

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/pool"
)

func TestWriteReadReopen(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("a", 1<<20)
		v := r.open("a")
		data := pattern(3*4096+777, 1)
		r.write(v, 1000, data)
		want := make([]byte, 1<<20)
		copy(want[1000:], data)
		if got := r.read(v, 0, 1<<20); !bytes.Equal(got, want) {
			t.Fatal(firstDiff(got, want))
		}
		must(t, v.Close(ctx))
		v, err := r.set.Open(ctx, "a", false)
		must(t, err)
		if got := r.read(v, 0, 1<<20); !bytes.Equal(got, want) {
			t.Fatal("after reopening:", firstDiff(got, want))
		}
		if err := r.do(Request{Kind: Write, Vol: v, Data: data}); !errors.Is(err, ErrReadOnly) {
			t.Fatal(err)
		}
		if v.Allocated() != 4*4096 {
			t.Fatalf("allocated %d", v.Allocated())
		}
		w := r.open("a")
		if w != v || !v.Writable() {
			t.Fatal("not upgraded in place")
		}
		must(t, r.do(Request{Kind: Discard, Vol: v, N: 1 << 20}))
		if got := r.read(v, 0, 1<<20); !bytes.Equal(got, make([]byte, 1<<20)) {
			t.Fatal("after discard:", firstDiff(got, make([]byte, 1<<20)))
		}
		if v.Allocated() != 0 {
			t.Fatalf("allocated %d", v.Allocated())
		}
		r.flush(v)
		must(t, w.Close(ctx))
		must(t, v.Close(ctx))
		must(t, r.set.Remove(ctx, "a", nil))
		if _, err := r.set.Open(ctx, "a", true); !errors.Is(err, pool.ErrNoVolume) {
			t.Fatal(err)
		}
	})
}
