package volume

import (
	"fmt"
	"testing"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// hot returns n aligned requests of one block each on a volume whose blocks exist.
func hot(r *rig, kind RequestKind, n int) []*Request {
	r.create("v", 64<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4<<20, 1))
	r.store.off.Store(true)
	reqs := make([]*Request, n)
	for i := range reqs {
		reqs[i] = &Request{Kind: kind, Vol: v, Off: int64(i) * 4096, Data: pattern(4096, byte(i))}
	}
	return reqs
}

// A read through a cache allocates nothing either: one that hits, one that is taken
// in, and one that is not.
func TestCachedReadsAllocateNothing(t *testing.T) {
	for name, size := range map[string]int64{"hits": 64 << 20, "misses": 256 << 10} {
		c, err := cache.Wrap(mem.New(mem.Config{}), cache.Config{Size: size, ReadAhead: 1 << 20})
		must(t, err)
		r := newRigOn(t, name, c)
		r.set.opt.Opened = c.Opened
		reqs := hot(r, Read, 32)
		at := int64(0)
		read := func() {
			for _, q := range reqs {
				at = (at + 37) % 1024
				q.Off = at * kvstore.BlockSize
			}
			r.w.Do(ctx, reqs)
		}
		for range 100 {
			read()
		}
		if n := testing.AllocsPerRun(200, read); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if st := c.Stats(); name == "hits" && st.Hits < st.Misses || name == "misses" && st.Misses < st.Hits {
			t.Errorf("%s: %+v", name, st)
		}
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	for _, kind := range []RequestKind{Read, Write} {
		r := newRig(t, "mem")
		reqs := hot(r, kind, 32)
		if n := testing.AllocsPerRun(100, func() { r.w.Do(ctx, reqs) }); n != 0 {
			t.Errorf("kind %d: %v allocations", kind, n)
		}
		reqs[0].Data = make([]byte, 1000) // partial
		reqs[0].Data[0] = 1
		if n := testing.AllocsPerRun(100, func() { r.w.Do(ctx, reqs) }); n != 0 {
			t.Errorf("kind %d, partial: %v allocations", kind, n)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	for _, kind := range []RequestKind{Read, Write} {
		for _, n := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/batch=%d", [...]string{Read: "read", Write: "write"}[kind], n), func(b *testing.B) {
				r := newRig(b, "mem")
				reqs := hot(r, kind, n)
				b.ReportAllocs()
				b.SetBytes(int64(n) * kvstore.BlockSize)
				for b.Loop() {
					r.w.Do(ctx, reqs)
				}
			})
		}
	}
}

func BenchmarkDiscardTebibyte(b *testing.B) {
	r := newRig(b, "mem")
	r.create("v", 1<<40)
	v := r.open("v")
	for i := range int64(1 << 40 / (bitsPerPage * 4096)) {
		r.write(v, i*bitsPerPage*4096, pattern(4096, 1))
	}
	req := &Request{Kind: Discard, Vol: v, N: 1 << 40}
	b.ReportAllocs()
	for b.Loop() {
		r.w.Do(ctx, []*Request{req})
	}
}
