package volume

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
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

// mapReads calls f for each batch that reads pages of the map.
func (r *rig) mapReads(f func(ops []*kvstore.Op)) {
	before := func(_ context.Context, ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Read && ops[0].Key.Kind != kvstore.KindBlock {
			f(ops)
		}
	}
	r.store.before.Store(&before)
}

// TestReadsDuringUpgrade: a volume that is open for reading is opened for writing,
// and its map takes longer to come than several leases. What is read meanwhile is
// right.
func TestReadsDuringUpgrade(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = 60 * time.Millisecond
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	must(t, v.Close(ctx))
	v, err := r.set.Open(ctx, "v", false)
	must(t, err)
	going, begun := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.mapReads(func([]*kvstore.Op) {
		once.Do(func() { close(begun) })
		<-going
	})
	done := make(chan error, 1)
	go func() {
		_, err := r.set.Open(ctx, "v", true)
		done <- err
	}()
	<-begun
	until := kvstore.Boottime() + int64(4*r.set.opt.Lease.TTL)
	for kvstore.Boottime() < until {
		if got, err := readOn(r.set, v, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 1)) {
			t.Error("during the upgrade:", err)
			break
		}
	}
	r.store.before.Store(nil)
	close(going)
	must(t, <-done)
	r.write(v, 0, pattern(4096, 2))
	must(t, v.Close(ctx))
	must(t, v.Close(ctx))
}

// TestFailedUpgrade: opening for writing what is open for reading fails after the
// lease was taken. Reading goes on, nobody else writes, and the next try succeeds.
func TestFailedUpgrade(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = aliveTTL
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	must(t, v.Close(ctx))
	other := r.machine(Options{})
	v, err := r.set.Open(ctx, "v", false)
	must(t, err)
	fail := func() {
		t.Helper()
		after := func(ops []*kvstore.Op) { ops[0].Err = kvstore.ErrUnreachable }
		r.store.after.Store(&after)
		if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, kvstore.ErrUnreachable) {
			t.Fatal(err)
		}
		r.store.after.Store(nil)
	}
	fail()
	until := kvstore.Boottime() + int64(aliveTTL+aliveTTL/4) // what was good before is so no more
	for kvstore.Boottime() < until {
		if got, err := readOn(r.set, v, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 1)) {
			t.Fatal("after an upgrade that failed:", err)
		}
	}
	if _, err := other.Open(ctx, "v", true); !errors.Is(err, pool.ErrHeld) {
		t.Fatalf("somebody else may write: %v", err)
	}
	theirs, err := other.Open(ctx, "v", false)
	must(t, err)
	must(t, theirs.Close(ctx))
	fail()
	up := r.open("v")
	r.write(up, 4096, pattern(4096, 2))
	must(t, up.Close(ctx))
	must(t, v.Close(ctx))

	v, err = r.set.Open(ctx, "v", false)
	must(t, err)
	fail()
	must(t, v.Close(ctx))
	if info, err := r.set.Info(ctx, "v"); err != nil || info.Holder != nil || info.Readers != nil {
		t.Error("it is held though it was closed", info.Holder, info.Readers, err)
	}
	if _, err := os.Lstat(statePath(r.set.opt.RuntimeDir, v.uuid)); err == nil {
		t.Error("local state is left of a volume that was not written to")
	}
}

// TestOvertakenUpgrade: somebody else wrote while the map was read for an upgrade. It
// fails, and what is read goes on to fail as that of any reader that was overtaken.
func TestOvertakenUpgrade(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = 60 * time.Millisecond
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(2*4096, 1))
	must(t, v.Close(ctx))
	old, err := r.set.Open(ctx, "v", false)
	must(t, err)
	going, begun := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.mapReads(func([]*kvstore.Op) {
		first := false
		once.Do(func() { first = true; close(begun) })
		if first {
			<-going
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := r.set.Open(ctx, "v", true)
		done <- err
	}()
	<-begun
	must(t, r.pool.Break(ctx, "v", true))
	other := r.machine(Options{})
	w, err := other.Open(ctx, "v", true)
	must(t, err)
	worker, err := other.Worker(ctx)
	must(t, err)
	discard := Request{Kind: Discard, Vol: w, Off: 0, N: 4096}
	worker.Do(ctx, []*Request{&discard})
	must(t, discard.Err)
	must(t, worker.Close())
	must(t, w.Close(ctx)) // deletes the key
	close(going)
	if err := <-done; !errors.Is(err, pool.ErrHeld) {
		t.Error("an upgrade that was overtaken:", err)
	}
	r.store.before.Store(nil)
	for _, off := range []int64{0, 4096} {
		if _, err := readOn(r.set, old, off, 4096); !errors.Is(err, ErrOvertaken) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if rec, err := r.pool.Volume(ctx, "v"); err != nil || rec.Damaged {
		t.Error("a discarded block was taken for lost", err)
	}
	must(t, old.Close(ctx))
}
