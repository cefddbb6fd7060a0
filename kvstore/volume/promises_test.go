package volume

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Statements of docs/semantics.md that no other test is about.

// TestFlushAnswersForAll: a flush stores the pages of the map that changed, then
// asks the store for its part. It fails if one of the two does, and what was not
// stored then is stored by the next one.
func TestFlushAnswersForAll(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.flush(v)
	var order []string
	var failMap, failStore bool
	after := func(ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Write && ops[0].Key.Kind == kvstore.KindMap {
			order = append(order, "map")
			if failMap {
				ops[0].Err = kvstore.ErrFull
			}
		}
	}
	flush := func(context.Context) error {
		order = append(order, "store")
		if failStore {
			return kvstore.ErrUnreachable
		}
		return nil
	}
	r.store.after.Store(&after)
	r.store.flush.Store(&flush)
	for i, step := range []struct {
		failMap, failStore bool
		want               error
		order              []string
	}{
		{false, false, nil, []string{"map", "store"}},
		{true, false, kvstore.ErrFull, []string{"map"}},
		{false, true, kvstore.ErrUnreachable, []string{"map", "store"}}, // of the step before
		{false, false, nil, []string{"store"}},
	} {
		if i < 2 {
			r.write(v, int64(1+i)*4096, pattern(4096, 1))
		}
		order, failMap, failStore = nil, step.failMap, step.failStore
		if err := r.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, step.want) || !slices.Equal(order, step.order) {
			t.Errorf("step %d: %v, in the order %v", i, err, order)
		}
	}
	r.store.after.Store(nil)
	r.store.flush.Store(nil)
	r.crash()
	r.loseState()
	v = r.open("v")
	for lba := range int64(3) {
		if got := r.read(v, lba*4096, 4096); !bytes.Equal(got, pattern(4096, 1)) {
			t.Errorf("block %d, which was flushed, is not there after a crash of the machine", lba)
		}
	}
}

// TestRightChecksumIsBelieved: who can write to the store may put there what they
// want, also what a block was before. That is a limit, which is documented.
func TestRightChecksumIsBelieved(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.store.off.Store(true) // no fence
	for _, forged := range [][]byte{pattern(4096, 1), pattern(4096, 77)} {
		r.write(v, 0, pattern(4096, 1))
		r.write(v, 0, pattern(4096, 2))
		must(t, r.set.withChannel(ctx, func(ch kvstore.Channel) error {
			op := kvstore.Op{Code: kvstore.Write, Key: v.blockKey(0), Seed: v.seed, Data: forged}
			ch.Do(ctx, []*kvstore.Op{&op})
			return op.Err
		}))
		if got := r.read(v, 0, 4096); !bytes.Equal(got, forged) {
			t.Error("neither what was written nor what was forged")
		}
	}
	if c := v.Counters(); c.Errors != 0 || c.CorruptBlocks+c.ForeignBlocks+c.MisplacedBlocks != 0 {
		t.Errorf("%+v", c)
	}
}

// TestPendingDeletionsSurviveACrash: of the daemon.
func TestPendingDeletionsSurviveACrash(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(8*4096, 1))
	r.flush(v)
	must(t, r.do(Request{Kind: Discard, Vol: v, N: 3 * 4096}))
	r.crash()
	v = r.open("v")
	if n := v.Counters().PendingDeletions; n != 3 {
		t.Errorf("%d deletions are pending, want 3", n)
	}
	r.reap(v)
	for lba := range uint64(8) {
		if there := slices.Contains(r.mem().Keys(), v.blockKey(lba)); there != (lba >= 3) {
			t.Errorf("block %d is in the store: %v", lba, there)
		}
	}
}

// TestProvisionAndZeros: zeros keep the place of a provisioned block while the
// volume stays open; opened anew, until it is provisioned again, they give it up.
func TestProvisionAndZeros(t *testing.T) {
	const bs = kvstore.BlockSize
	r := newRig(t, "mem")
	r.create("v", 64*bs)
	v := r.open("v")
	provision := func() { must(t, r.do(Request{Kind: Provision, Vol: v, N: 4 * bs})) }
	zeros := func(want int64) {
		t.Helper()
		r.write(v, 0, make([]byte, bs))
		if got := v.Allocated() / bs; got != want {
			t.Errorf("%d blocks are allocated, want %d", got, want)
		}
	}
	provision()
	zeros(4)
	must(t, v.Close(ctx))
	v = r.open("v")
	zeros(3)
	provision()
	zeros(4)
	must(t, r.do(Request{Kind: Discard, Vol: v, N: bs}))
	zeros(3)
}
