package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// TestLostIsNeverAHole: a block that was written and is gone gives an error for
// reads and partial writes, the record says damaged before, and a whole write
// heals it.
func TestLostIsNeverAHole(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(8*4096, 1))
	if !r.mem().Drop(v.blockKey(3)) {
		t.Fatal("nothing dropped")
	}
	if err := r.do(Request{Kind: Read, Vol: v, Off: 3 * 4096, Data: make([]byte, 4096)}); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	rec, err := r.pool.Volume(ctx, "v")
	must(t, err)
	if !rec.Damaged {
		t.Fatal("not marked")
	}
	if err := r.do(Request{Kind: Write, Vol: v, Off: 3*4096 + 100, Data: []byte("x")}); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	if c := v.Counters(); c.LostBlocks != 2 || c.Errors != 2 || c.HealedBlocks != 0 {
		t.Fatalf("%+v", c)
	}
	// The neighbours are not affected, the block is healed by a whole write.
	r.read(v, 2*4096, 4096)
	r.read(v, 4*4096, 4096)
	r.write(v, 3*4096, pattern(4096, 9))
	if got := r.read(v, 3*4096, 4096); !bytes.Equal(got, pattern(4096, 9)) {
		t.Fatal("not healed")
	}
	if c := v.Counters(); c.HealedBlocks != 1 {
		t.Fatalf("%+v", c)
	}
}

func TestCorrupt(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(2*4096, 1))
	r.mem().Corrupt(v.blockKey(1))
	if err := r.do(Request{Kind: Read, Vol: v, Data: make([]byte, 8192)}); !errors.Is(err, kvstore.ErrCorrupt) {
		t.Fatal(err)
	}
	if c := v.Counters(); c.CorruptBlocks != 1 {
		t.Fatalf("%+v", c)
	}
	r.write(v, 4096, pattern(4096, 2))
	r.read(v, 0, 8192)
}

// TestLostPage: a page of the map that its parent names and the store lacks makes
// its range an error where blocks are missing, and leaves those that are there.
func TestLostPage(t *testing.T) {
	for _, write := range []bool{false, true} {
		r := newRig(t, "mem")
		r.create("v", 2*bitsPerPage*4096)
		v := r.open("v")
		r.write(v, 4096, pattern(4096, 1))
		must(t, v.Close(ctx))
		r.mem().Drop(pageID{0, 0}.key(v.layer))
		v, err := r.set.Open(ctx, "v", write)
		must(t, err)
		if rec, err := r.pool.Volume(ctx, "v"); err != nil || !rec.Damaged {
			t.Fatal("not marked as damaged", err)
		}
		if got := r.read(v, 4096, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("what is there cannot be read")
		}
		if err := r.do(Request{Kind: Read, Vol: v, Data: make([]byte, 4096)}); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		if got := r.read(v, bitsPerPage*4096, 4096); !zero(got) {
			t.Fatal("another page's range is affected")
		}
		if write {
			must(t, v.Close(ctx))
			v = r.open("v")
			if err := r.do(Request{Kind: Read, Vol: v, Data: make([]byte, 4096)}); !errors.Is(err, ErrLost) {
				t.Fatal("forgotten by a restart:", err)
			}
		}
	}
}

// TestServerLost: a server that was emptied makes every flush fail, not only the
// first one, until the volume is opened anew.
func TestServerLost(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.flush(v)
	r.mem().Forget(0)
	for range 3 {
		if err := r.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, kvstore.ErrServerLost) {
			t.Fatal(err)
		}
	}
	if err := r.do(Request{Kind: Read, Vol: v, Data: make([]byte, 4096)}); err == nil {
		t.Fatal("zeros for what was lost")
	}
}

// TestFull: new blocks get ErrFull; overwrites and flushes succeed; a discard
// frees room, also without a flush of the file system.
func TestFull(t *testing.T) {
	const room = 40
	r := newRigOn(t, "", mem.New(mem.Config{CapacityBlocks: room, Reserve: true}))
	r.create("v", 256*4096)
	v := r.open("v")
	stored := 0
	var err error
	for ; err == nil && stored <= room; stored++ {
		err = r.do(Request{Kind: Write, Vol: v, Off: int64(stored) * 4096, Data: pattern(4096, 1)})
	}
	if !errors.Is(err, kvstore.ErrFull) || stored < room/2 {
		t.Fatal(stored, err)
	}
	stored--
	r.write(v, 0, pattern(4096, 2))
	r.flush(v)
	r.read(v, 0, int64(stored)*4096)
	must(t, r.do(Request{Kind: Discard, Vol: v, N: 10 * 4096}))
	if c := v.Counters(); c.PendingDeletions != 10 {
		t.Fatalf("%+v", c)
	}
	r.reap(v)
	if c := v.Counters(); c.PendingDeletions != 0 {
		t.Fatalf("%+v", c)
	}
	for i := range int64(9) {
		r.write(v, (100+i)*4096, pattern(4096, 3))
	}
}

// TestReapByItself: the background deletes without any flush.
func TestReapByItself(t *testing.T) {
	r := newRig(t, "mem")
	r.set.reapDelay = time.Millisecond
	r.create("v", 256*4096)
	v := r.open("v")
	r.write(v, 0, pattern(100*4096, 1))
	must(t, r.do(Request{Kind: Discard, Vol: v, N: 100 * 4096}))
	for deadline := time.Now().Add(20 * time.Second); r.mem().Blocks() > 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d keys are left", r.mem().Blocks())
		}
	}
}

// TestDeletionWaitsForStoredPage: while the page cannot be stored no key goes.
func TestDeletionWaitsForStoredPage(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 256*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4*4096, 1))
	r.flush(v)
	order := []kvstore.Kind{}
	before := func(_ context.Context, ops []*kvstore.Op) {
		for _, op := range ops {
			if op.Code != kvstore.Read {
				order = append(order, op.Key.Kind)
			}
		}
	}
	r.store.before.Store(&before)
	must(t, r.do(Request{Kind: Discard, Vol: v, N: 2 * 4096}))
	r.reap(v)
	r.store.before.Store(nil)
	if len(order) != 3 || order[0] != kvstore.KindMap || order[1] != kvstore.KindBlock {
		t.Fatalf("order of changes: %v", order)
	}
	r.crash()
	r.loseState()
	v = r.open("v")
	if got := r.read(v, 0, 4*4096); !zero(got[:8192]) || !bytes.Equal(got[8192:], pattern(4*4096, 1)[8192:]) {
		t.Fatal("after a crash of the machine the discard is wrong")
	}
}

// TestTimeout: a server that does not answer gives an error after the timeout,
// and what waits for a claim too.
func TestTimeout(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	v.SetTimeout(20 * time.Millisecond)
	silent := func(ctx context.Context, ops []*kvstore.Op) { <-ctx.Done() }
	r.store.before.Store(&silent)
	after := func(ops []*kvstore.Op) {
		for _, op := range ops {
			op.Err = kvstore.ErrTimeout
		}
	}
	r.store.after.Store(&after)
	reqs := []*Request{
		{Kind: Write, Vol: v, Data: pattern(512, 1)},
		{Kind: Write, Vol: v, Off: 512, Data: pattern(512, 1)},
		{Kind: Read, Vol: v, Data: make([]byte, 512)},
	}
	r.w.Do(ctx, reqs)
	r.store.before.Store(nil)
	r.store.after.Store(nil)
	for i, req := range reqs {
		if !errors.Is(req.Err, kvstore.ErrTimeout) {
			t.Errorf("%d: %v", i, req.Err)
		}
	}
	v.SetTimeout(0)
	for i := range r.set.claims.words {
		if r.set.claims.words[i].Load() != 0 {
			t.Fatal("a claim is left")
		}
	}
	r.write(v, 0, pattern(4096, 2))
}

// TestServerLostOthersKept: after one server was emptied, what was written to the
// others is still in the stored map when the volume was closed.
func TestServerLostOthersKept(t *testing.T) {
	const pages = 150
	r := newRig(t, "mem3")
	r.create("v", pages*bitsPerPage*kvstore.BlockSize)
	v := r.open("v")
	at := func(page, block int) int64 { return int64(page*bitsPerPage+block) * kvstore.BlockSize }
	for p := range pages {
		r.write(v, at(p, 0), pattern(4096, 1))
	}
	r.flush(v)
	const lost = 2
	r.mem().Forget(lost)
	if err := r.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, kvstore.ErrServerLost) {
		t.Fatal(err)
	}
	for p := range pages {
		r.write(v, at(p, 1), pattern(4096, 2))
	}
	layer, seed := v.layer, v.seed
	if err := v.Close(ctx); !errors.Is(err, kvstore.ErrServerLost) {
		t.Fatal(err)
	}
	kept := 0
	must(t, r.set.withChannel(ctx, func(ch kvstore.Channel) error {
		for p := range uint64(pages) {
			op := kvstore.Op{Code: kvstore.Read, Key: pageID{0, p}.key(layer), Seed: seed, Data: make([]byte, kvstore.BlockSize)}
			if r.pool.Server(op.Key) == lost {
				continue
			}
			ch.Do(ctx, []*kvstore.Op{&op})
			if op.Err != nil || pageWord(op.Data, 0) != 3 {
				t.Errorf("page %d: bits %#x, %v", p, pageWord(op.Data, 0), op.Err)
			}
			kept++
		}
		return nil
	}))
	if kept < pages/3 {
		t.Fatalf("only %d pages are on the other servers", kept)
	}
}

// TestRecoverStoresUpperPages: a page above the lowest level that the store lost while a
// crash left the map here is stored again by the recovery, as the lowest ones are.
func TestRecoverStoresUpperPages(t *testing.T) {
	for _, size := range []int64{2, bitsPerPage + 1} { // of two levels, and of three
		for _, repair := range []bool{false, true} {
			r := newRig(t, "mem")
			r.create("v", size*bitsPerPage*kvstore.BlockSize)
			v := r.open("v")
			r.write(v, 0, pattern(kvstore.BlockSize, 1))
			r.flush(v)
			r.crash()
			for level := uint8(1); level < MapHeight(v.Size()); level++ {
				if !r.mem().Drop(pageID{level, 0}.key(v.layer)) {
					t.Fatal("nothing dropped")
				}
			}
			if repair {
				_, err := r.set.Repair(ctx, "v", nil)
				must(t, err)
			} else {
				must(t, r.open("v").Close(ctx))
			}
			v = r.open("v")
			for _, at := range []int64{1, bitsPerPage + 5} {
				if err := r.do(Request{Kind: Read, Vol: v, Off: at * kvstore.BlockSize, Data: make([]byte, kvstore.BlockSize)}); err != nil {
					t.Errorf("repair %v: block %d, a hole: %v", repair, at, err)
				}
			}
			if rec, err := r.pool.Volume(ctx, "v"); err != nil || rec.Damaged {
				t.Errorf("repair %v: marked as damaged (%v)", repair, err)
			}
		}
	}
}

// TestLostCloseGivenUp: one server was emptied and another one is silent, so the last
// close is given up. What the latter had acknowledged is no hole afterwards.
func TestLostCloseGivenUp(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 1024*kvstore.BlockSize)
	v := r.open("v")
	r.write(v, 0, pattern(kvstore.BlockSize, 9))
	r.flush(v)
	lost := 1
	if r.pool.Server(pageID{0, 0}.key(v.layer)) == lost {
		lost = 2
	}
	r.mem().Forget(lost)
	if err := r.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, kvstore.ErrServerLost) {
		t.Fatal(err)
	}
	at := int64(64)
	for r.pool.Server(v.blockKey(uint64(at))) == lost {
		at++
	}
	want := pattern(kvstore.BlockSize, 1)
	r.write(v, at*kvstore.BlockSize, want)
	over, giveUp := context.WithCancel(ctx)
	defer giveUp()
	before := func(_ context.Context, ops []*kvstore.Op) {
		if ops[0].Key.Kind == kvstore.KindMap {
			giveUp() // while the page's server is silent
		}
	}
	r.store.before.Store(&before)
	if err := v.Close(over); !errors.Is(err, kvstore.ErrServerLost) || !errors.Is(err, kvstore.ErrAborted) {
		t.Fatal(err)
	}
	r.store.before.Store(nil)
	must(t, r.reopen(true))
	must(t, r.pool.AcceptLost(ctx))
	must(t, r.reopen(false))
	_, err := r.set.Repair(ctx, "v", nil)
	must(t, err)
	r.newWorker()
	if got := r.read(r.open("v"), at*kvstore.BlockSize, kvstore.BlockSize); !bytes.Equal(got, want) {
		t.Errorf("what a server that is left had acknowledged: %s", firstDiff(got, want))
	}
}

// TestErrorOfAllPages: of the errors of several pages, the one after which a page could
// still be stored is told, in whatever order they come.
func TestErrorOfAllPages(t *testing.T) {
	for first := range 2 {
		r := newRig(t, "mem")
		r.create("v", 4*bitsPerPage*kvstore.BlockSize)
		v := r.open("v")
		for p := range int64(4) {
			r.write(v, p*bitsPerPage*kvstore.BlockSize, pattern(kvstore.BlockSize, 1))
		}
		after := func(ops []*kvstore.Op) {
			for _, op := range ops {
				if op.Key.Kind == kvstore.KindMap {
					op.Err = [2]error{kvstore.ErrServerLost, kvstore.ErrTimeout}[(op.Key.Number+uint64(first))%2]
				}
			}
		}
		r.store.after.Store(&after)
		err := r.set.withChannel(ctx, func(ch kvstore.Channel) error { return v.flushMap(ctx, ch, v.m.Load()) })
		r.store.after.Store(nil)
		if !errors.Is(err, kvstore.ErrTimeout) {
			t.Error(err)
		}
	}
}
