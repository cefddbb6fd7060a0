package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// What was provisioned takes writes on a full store; what was not gets ErrFull.
func TestProvisionedBlocksAreOverwrittenWhenFull(t *testing.T) {
	const bs = kvstore.BlockSize
	r := newRigOn(t, "", mem.New(mem.Config{CapacityBlocks: 200, Reserve: true}))
	r.create("a", 16<<20)
	v := r.open("a")
	old := pattern(3*bs, 9)
	r.write(v, 10*bs, old)
	// Unaligned: blocks 8 to 39, of which 10 to 12 are there.
	must(t, r.do(Request{Kind: Provision, Vol: v, Off: 8*bs + 100, N: 31*bs + 1}))
	if got := v.Allocated(); got != 32*bs {
		t.Fatalf("allocated %d blocks, want 32", got/bs)
	}
	if !bytes.Equal(r.read(v, 10*bs, 3*bs), old) || !zero(r.read(v, 8*bs, 2*bs)) || !zero(r.read(v, 13*bs, 27*bs)) {
		t.Fatal("provisioning changed what is read")
	}
	// Zeros keep a place that was asked for, whole or in part, and no other one.
	r.write(v, 50*bs, old)
	for _, off := range []int64{11 * bs, 51 * bs} {
		r.write(v, off, make([]byte, bs))
		r.write(v, off-bs, make([]byte, 100))
		r.write(v, off-bs+100, make([]byte, bs-100))
	}
	if got := v.Allocated(); got != 33*bs {
		t.Fatalf("after zeros %d blocks are allocated, want 33", got/bs)
	}

	var err error
	for off := int64(1000 * bs); err == nil; off += bs {
		err = r.do(Request{Kind: Write, Vol: v, Off: off, Data: pattern(bs, 1)})
	}
	if !errors.Is(err, kvstore.ErrFull) {
		t.Fatal(err)
	}
	r.write(v, 8*bs, pattern(32*bs, 3))
	r.flush(v)
	if got := r.read(v, 8*bs, 32*bs); !bytes.Equal(got, pattern(32*bs, 3)) {
		t.Fatal(firstDiff(got, pattern(32*bs, 3)))
	}
	if err := r.do(Request{Kind: Provision, Vol: v, Off: 8 * bs, N: 33 * bs}); !errors.Is(err, kvstore.ErrFull) {
		t.Fatal("provisioning on a full store:", err)
	}
	must(t, r.do(Request{Kind: Provision, Vol: v, Off: 8 * bs, N: 32 * bs})) // there already

	// The promise ends with a discard, and what is left survives a new opening.
	must(t, r.do(Request{Kind: Discard, Vol: v, Off: 8 * bs, N: bs}))
	r.flush(v)
	must(t, v.Close(ctx))
	v = r.open("a")
	if got := r.read(v, 9*bs, 31*bs); !bytes.Equal(got, pattern(32*bs, 3)[bs:]) {
		t.Fatal("after opening again:", firstDiff(got, pattern(32*bs, 3)[bs:]))
	}
	must(t, v.Close(ctx))
}

// A full store takes a new block if its content went through provisioned blocks,
// in this life of the volume or, read again, in an earlier one.
func TestJournalledContentIsVital(t *testing.T) {
	const bs = kvstore.BlockSize
	r := newRigOn(t, "", mem.New(mem.Config{CapacityBlocks: 100, Reserve: true}))
	r.create("a", 16<<20)
	v := r.open("a")
	must(t, r.do(Request{Kind: Provision, Vol: v, N: 8 * bs}))
	r.write(v, 0, pattern(8*bs, 1))
	write := func(lba int64, data []byte) error {
		return r.do(Request{Kind: Write, Vol: v, Off: lba * bs, Data: data})
	}
	var err error
	for lba := int64(1000); err == nil; lba++ {
		err = write(lba, pattern(bs, byte(lba)|128))
	}
	if !errors.Is(err, kvstore.ErrFull) {
		t.Fatal(err)
	}
	must(t, write(100, pattern(8*bs, 1)))
	if err := write(200, pattern(bs, 3)); !errors.Is(err, kvstore.ErrFull) {
		t.Fatal("what was in no journal:", err)
	}
	must(t, r.do(Request{Kind: Write, Vol: v, Off: 300*bs + 100, Data: make([]byte, bs)})) // zeros over holes
	r.flush(v)
	must(t, v.Close(ctx))
	v = r.open("a")
	must(t, r.do(Request{Kind: Provision, Vol: v, N: 8 * bs}))
	if err := write(400, pattern(8*bs, 1)); !errors.Is(err, kvstore.ErrFull) {
		t.Fatal("before it was read:", err)
	}
	r.read(v, 0, 8*bs)
	must(t, write(400, pattern(8*bs, 1)))
	if got := r.read(v, 400*bs, 8*bs); !bytes.Equal(got, pattern(8*bs, 1)) {
		t.Fatal(firstDiff(got, pattern(8*bs, 1)))
	}
	must(t, v.Close(ctx))
}

func TestProvisionRefused(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		r.create("a", 1<<20)
		v := r.open("a")
		err := r.do(Request{Kind: Provision, Vol: v, N: 1 << 20})
		if r.set.prop.Presence != errors.Is(err, kvstore.ErrUnsupported) || (err != nil && !r.set.prop.Presence) {
			t.Fatalf("provision: %v, the store keeps presence: %t", err, r.set.prop.Presence)
		}
		if err := r.do(Request{Kind: Provision, Vol: v, Off: 4096, N: 1 << 20}); !errors.Is(err, ErrOutside) {
			t.Fatal("beyond the end:", err)
		}
		must(t, v.Close(ctx))
		v, err = r.set.Open(ctx, "a", false)
		must(t, err)
		if err := r.do(Request{Kind: Provision, Vol: v, N: 4096}); !errors.Is(err, ErrReadOnly) {
			t.Fatal("read-only:", err)
		}
		must(t, v.Close(ctx))
	})
}

// A provision among writes and discards of the same blocks changes nothing that
// is read.
func TestProvisionModel(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	for _, kind := range []string{"mem", "mem3"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind)
			const base, blocks = (bitsPerPage - 100) * kvstore.BlockSize, 200
			r.create("v", base+blocks*kvstore.BlockSize)
			m := &model{rig: r, t: t, rnd: rand.New(rand.NewPCG(seed, 2)), base: base, v: r.open("v"),
				want: make([]byte, blocks*kvstore.BlockSize), provisions: true}
			m.settled()
			for began := time.Now(); time.Since(began) < modelTime/4 && !t.Failed(); {
				m.step()
			}
			m.check("the end")
		})
	}
}

// A worker that provisions does not put zeros over what another one writes.
func TestProvisionAgainstWriters(t *testing.T) {
	const bs, blocks = kvstore.BlockSize, 64
	r := newRig(t, "mem")
	r.create("a", 16<<20)
	v := r.open("a")
	other, err := r.set.Worker(ctx)
	must(t, err)
	defer other.Close()
	for round := range 30 {
		data := pattern(blocks*bs, byte(round))
		done := make(chan error)
		go func() {
			req := Request{Kind: Provision, Vol: v, N: blocks * bs}
			other.Do(ctx, []*Request{&req})
			done <- req.Err
		}()
		r.write(v, 0, data)
		must(t, <-done)
		if got := r.read(v, 0, blocks*bs); !bytes.Equal(got, data) {
			t.Fatalf("round %d: %s", round, firstDiff(got, data))
		}
		must(t, r.do(Request{Kind: Discard, Vol: v, N: blocks * bs}))
	}
}

func TestProvisionedSet(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var p provisioned
		var want [100]bool
		for range rnd.IntN(20) {
			first := rnd.IntN(90)
			n := 1 + rnd.IntN(10)
			p.add(uint64(first), uint64(n))
			for i := first; i < first+n; i++ {
				want[i] = true
			}
		}
		for i, w := range want {
			if p.has(uint64(i)) != w {
				t.Fatalf("has(%d) is %t; %v", i, !w, p.extents.Load())
			}
		}
		if list := p.extents.Load(); list != nil {
			for i := 1; i < len(*list); i++ {
				if (*list)[i-1].first+(*list)[i-1].count >= (*list)[i].first {
					t.Fatalf("not apart: %v", *list)
				}
			}
		}
	}
}
