package volume

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// reopen gives the rig a new daemon, after the last one closed its volumes.
func (r *rig) reopen(damaged bool) error {
	r.t.Helper()
	if r.w != nil {
		must(r.t, r.w.Close())
		r.w = nil
	}
	must(r.t, r.pool.Close())
	p, err := pool.Open(ctx, r.store, pool.Options{URL: "test:", StateDir: r.state, RuntimeDir: r.runtime, Damaged: damaged})
	if err != nil {
		return err
	}
	opt := r.set.opt
	r.pool, r.set = p, New(p, r.store, opt)
	return nil
}

// contents are all blocks of a volume, nil where reading fails.
func (r *rig) contents(v *Volume, blocks int64) (out [][]byte) {
	for i := range blocks {
		b := make([]byte, 4096)
		if err := r.do(Request{Kind: Read, Vol: v, Off: i * 4096, Data: b}); err != nil {
			b = nil
		}
		out = append(out, b)
	}
	return out
}

// TestRepairAfterServerLost: one of three servers comes back empty. The pool is
// refused; Survey says what is lost and changes nothing; after the consent each
// volume is refused until its own repair; then what was lost is a hole, all else
// is there, flushes succeed and a restart finds nothing lost.
func TestRepairAfterServerLost(t *testing.T) {
	for victim := range 3 {
		r := newRig(t, "mem3")
		// The first server takes the records of the leases along: that is waited for.
		r.set.opt.Lease.TTL = 200 * time.Millisecond
		const blocks = 1500
		r.create("v", (bitsPerPage+3000)*4096) // two levels
		r.create("w", 64*4096)
		v := r.open("v")
		for i := range int64(blocks) {
			r.write(v, i*4096, pattern(4096, byte(i)))
		}
		r.write(v, (bitsPerPage+2000)*4096, pattern(4096, 7))
		w := r.open("w")
		r.write(w, 0, pattern(64*4096, 5))
		must(t, errors.Join(v.Close(ctx), w.Close(ctx)))
		layer := v.layer
		on := func(lba uint64) bool { return r.pool.Server(kvstore.Key{Layer: layer, Number: lba}) == victim }
		lost := uint64(0)
		for i := range uint64(blocks) {
			if on(i) {
				lost++
			}
		}
		if on(bitsPerPage + 2000) {
			lost++
		}
		r.mem().Forget(victim)
		if err := r.reopen(false); !errors.Is(err, pool.ErrForgotten) {
			t.Fatal(err)
		}
		must(t, r.reopen(true))
		if got := r.pool.Lost(); !slices.Equal(got, []int{victim}) {
			t.Fatalf("lost servers: %v", got)
		}
		keys, control := r.mem().Keys(), r.mem().Counters()
		d, err := r.set.Survey(ctx, "v", nil)
		must(t, err)
		name := r.store.Servers()[victim]
		if d.Lost+d.Unknown < lost || d.Pages == 0 && d.Lost != lost || len(d.Servers) != 1 && d.Pages == 0 || d.Servers[name] < lost {
			t.Errorf("server %d: %d blocks are lost, survey says %+v", victim, lost, d)
		}
		if now := r.mem().Counters(); !slices.Equal(keys, r.mem().Keys()) || now.Writes != control.Writes || now.Discards != control.Discards {
			t.Error("the survey changed something")
		}
		if err := r.reopen(false); !errors.Is(err, pool.ErrForgotten) {
			t.Fatal("the survey was enough:", err)
		}
		must(t, r.reopen(true))
		must(t, r.pool.AcceptLost(ctx))
		must(t, r.reopen(false))
		must(t, r.pool.CheckSentinels(ctx))
		for _, write := range []bool{false, true} {
			if _, err := r.set.Open(ctx, "v", write); !errors.Is(err, ErrUnaccepted) {
				t.Fatal("opened without consent:", err)
			}
		}
		r.set.opt.Lease.Wait = 0
		got, err := r.set.Repair(ctx, "v", nil)
		must(t, err)
		if got.Lost+got.Unknown != d.Lost+d.Unknown || got.Pages != d.Pages {
			t.Errorf("repaired %+v, surveyed %+v", got, d)
		}
		r.newWorker()
		v = r.open("v")
		for i, b := range r.contents(v, blocks) {
			want := pattern(4096, byte(i))
			if on(uint64(i)) {
				want = make([]byte, 4096)
			}
			if !bytes.Equal(b, want) {
				t.Fatalf("server %d: block %d: read %v, on the lost server %v", victim, i, b != nil, on(uint64(i)))
			}
		}
		r.write(v, 0, pattern(64*4096, 8))
		r.flush(v)
		must(t, v.Close(ctx))
		if _, err := r.set.Open(ctx, "w", true); !errors.Is(err, ErrUnaccepted) {
			t.Fatal("the consent for v was one for w:", err)
		}
		info, err := r.set.Info(ctx, "v")
		must(t, err)
		if info.Damaged || info.Unaccepted || len(info.Consents) != 1 || info.Consents[0].Lost != got.Lost || info.Consents[0].Unknown != got.Unknown {
			t.Errorf("%+v", info)
		}
		if d, err := r.set.Survey(ctx, "v", nil); err != nil || d.Blocks()+d.Pages != 0 {
			t.Errorf("after the repair: %+v, %v", d, err)
		}
		must(t, r.set.Remove(ctx, "v", nil))
		_, err = r.set.Repair(ctx, "w", nil)
		must(t, err)
		must(t, r.set.Remove(ctx, "w", nil))
		if keys := r.mem().Keys(); len(keys) != 0 {
			t.Errorf("%d keys are left: %v", len(keys), keys)
		}
	}
}

// TestRepairSingleBlocks: lost, damaged and misplaced blocks of servers that are
// all right become holes; their neighbours stay, and the mark goes.
func TestRepairSingleBlocks(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(32*4096, 1))
	want := pattern(64*4096, 1)
	clear(want[32*4096:])
	r.mem().Drop(v.blockKey(3))
	r.mem().Corrupt(v.blockKey(4))
	r.mem().Misplace(v.blockKey(5), v.blockKey(9))
	for _, lba := range []int{3, 4, 9} {
		clear(want[lba*4096 : (lba+1)*4096])
	}
	if _, err := r.set.Repair(ctx, "v", nil); !errors.Is(err, ErrInUse) {
		t.Fatal("repaired while it is open:", err)
	}
	if _, err := r.set.Survey(ctx, "v", nil); !errors.Is(err, ErrInUse) {
		t.Fatal("surveyed while it is open:", err)
	}
	if err := r.do(Request{Kind: Read, Vol: v, Off: 3 * 4096, Data: make([]byte, 4096)}); err == nil {
		t.Fatal("nothing is lost")
	}
	must(t, v.Close(ctx))
	for range 2 {
		d, err := r.set.Survey(ctx, "v", nil)
		must(t, err)
		if d.Lost != 1 || d.Corrupt != 1 || d.Misplaced != 1 || d.Unknown != 0 {
			t.Fatalf("%+v", d)
		}
	}
	if d, err := r.set.Repair(ctx, "v", nil); err != nil || d.Blocks() != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
	rec, err := r.pool.Volume(ctx, "v")
	must(t, err)
	if rec.Damaged {
		t.Error("still marked")
	}
	v = r.open("v")
	if got := r.read(v, 0, 64*4096); !bytes.Equal(got, want) {
		t.Error(firstDiff(got, want))
	}
	if n := r.mem().Blocks(); n != 29+1 {
		t.Errorf("%d keys, want 29 blocks and a page", n)
	}
}

// TestRepairLostPage: a page of the map that is gone is made anew with the blocks
// that are there; a damaged key in its range is not taken for a block.
func TestRepairLostPage(t *testing.T) {
	for _, level := range []uint8{0, 1} {
		r := newRig(t, "mem")
		r.create("v", 2*bitsPerPage*4096)
		v := r.open("v")
		r.write(v, 0, pattern(10*4096, 1))
		r.write(v, bitsPerPage*4096, pattern(4096, 2))
		must(t, v.Close(ctx))
		r.mem().Drop(pageID{level, 0}.key(v.layer))
		r.mem().Corrupt(v.blockKey(6))
		d, err := r.set.Survey(ctx, "v", nil)
		must(t, err)
		if d.Pages != 1 || d.Corrupt != 1 || level == 0 && d.Unknown != bitsPerPage-10 || d.Lost != 0 {
			t.Errorf("level %d: %+v", level, d)
		}
		if _, err := r.set.Repair(ctx, "v", nil); err != nil {
			t.Fatal(err)
		}
		r.crash()
		v = r.open("v")
		want := append(pattern(10*4096, 1), make([]byte, 4096)...)
		clear(want[6*4096 : 7*4096])
		if got := r.read(v, 0, 11*4096); !bytes.Equal(got, want) {
			t.Errorf("level %d: %s", level, firstDiff(got, want))
		}
		if got := r.read(v, bitsPerPage*4096, 8192); !bytes.Equal(got, append(pattern(4096, 2), make([]byte, 4096)...)) {
			t.Errorf("level %d: the other page's range is wrong", level)
		}
		if v.Allocated() != 10*4096 {
			t.Errorf("level %d: %d bytes are stored", level, v.Allocated())
		}
	}
}

// TestSurveyAfterCrash: what a crash left unflushed counts as it does for the next
// open, and the survey leaves it to be recovered.
func TestSurveyAfterCrash(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(8*4096, 1))
	r.flush(v)
	r.write(v, 8*4096, pattern(8*4096, 2))
	r.mem().Drop(v.blockKey(12))
	r.crash()
	if d, err := r.set.Survey(ctx, "v", nil); err != nil || d.Lost != 1 || d.Extents[0].First != 12 {
		t.Errorf("%+v, %v", d, err)
	}
	v = r.open("v")
	if got := r.read(v, 8*4096, 4*4096); !bytes.Equal(got, pattern(8*4096, 2)[:4*4096]) {
		t.Error("what was acknowledged is gone")
	}
	if err := r.do(Request{Kind: Read, Vol: v, Off: 12 * 4096, Data: make([]byte, 4096)}); !errors.Is(err, ErrLost) {
		t.Error(err)
	}
}
