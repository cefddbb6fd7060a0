package volume

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// What is given up half-way, or fails at a bad moment, leaves no volume open and no
// lease held that nobody would ever let go.

// swapped tells of the records that are swapped, by server and name; before may fail it.
type swapped struct {
	kvstore.Store
	before func(server int, name string) error
	after  func(name string)
}

func (s *swapped) Control() kvstore.Control { return swappedControl{s.Store.Control(), s} }

type swappedControl struct {
	kvstore.Control
	s *swapped
}

func (c swappedControl) Swap(ctx context.Context, server int, name string, old kvstore.Record, value []byte) error {
	if c.s.before != nil {
		if err := c.s.before(server, name); err != nil {
			return err
		}
	}
	err := c.Control.Swap(ctx, server, name, old, value)
	if c.s.after != nil {
		c.s.after(name)
	}
	return err
}

// failOnce fails the first swap of a record like this on one of these servers.
func failOnce(part string, servers ...int) (before func(int, string) error, failed *bool) {
	failed = new(bool)
	return func(server int, name string) error {
		for _, s := range servers {
			if s == server && !*failed && strings.Contains(name, part) {
				*failed = true
				return kvstore.ErrUnreachable
			}
		}
		return nil
	}, failed
}

// TestResizeAgain: the new size is in the record, but a copy of the record could not be
// stored, so the resize failed. Once more it makes the volume that is open larger, too.
func TestResizeAgain(t *testing.T) {
	const small, large = 10 * kvstore.BlockSize, 20 * kvstore.BlockSize
	st := &swapped{Store: mem.New(mem.Config{Servers: 3})}
	r := newRigOn(t, "own", st)
	r.create("v", small)
	v := r.open("v")
	before, failed := failOnce(":volume:", 1, 2)
	st.before = before
	if err := r.set.Resize(ctx, "v", large, false); err == nil || !*failed {
		t.Fatal("the copy of the record did not fail")
	}
	must(t, r.set.Resize(ctx, "v", large, false))
	if v.Size() != large {
		t.Errorf("resize succeeded, but the open volume has %d bytes, want %d", v.Size(), large)
	}
	must(t, r.do(Request{Kind: Write, Vol: v, Off: large - kvstore.BlockSize, Data: pattern(kvstore.BlockSize, 1)}))
	must(t, v.Close(ctx))
}

// TestInterruptedResize: who asked for a resize hangs up. Nobody has the volume open then.
func TestInterruptedResize(t *testing.T) {
	st := &swapped{Store: mem.New(mem.Config{})}
	r := newRigOn(t, "own", st)
	r.create("v", 10*kvstore.BlockSize)
	hung, cancel := context.WithCancel(ctx)
	swaps := 0
	st.after = func(name string) {
		if !strings.Contains(name, ":volume:") {
			return
		}
		if swaps++; swaps == 2 { // the first one makes us its holder
			cancel()
		}
	}
	t.Log("interrupted: ", r.set.Resize(hung, "v", 20*kvstore.BlockSize, false))
	if hung.Err() == nil {
		t.Fatal("not interrupted")
	}
	if v := r.set.opened("v"); v != nil {
		t.Errorf("it is open: %d references, writable %v", v.refs, v.Writable())
	}
	must(t, r.set.Remove(ctx, "v", nil))
}

// TestInterruptedShrink: the same while keys are deleted. Once more it goes through.
func TestInterruptedShrink(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 2000*kvstore.BlockSize)
	v := r.open("v")
	r.write(v, 0, pattern(2000*kvstore.BlockSize, 1))
	must(t, v.Close(ctx))
	hung, cancel := context.WithCancel(ctx)
	before := func(_ context.Context, ops []*kvstore.Op) {
		if ops[0].Code == kvstore.Discard {
			cancel()
		}
	}
	r.store.before.Store(&before)
	t.Log("interrupted: ", r.set.Resize(hung, "v", 10*kvstore.BlockSize, true))
	r.store.before.Store(nil)
	if hung.Err() == nil {
		t.Fatal("not interrupted")
	}
	must(t, r.set.Resize(ctx, "v", 10*kvstore.BlockSize, true))
}

// TestLeaseOfFailedOpen: a machine crashed, another one wrote to its volume since. The
// first one tries to open it and fails: it has nothing to keep the lease for.
func TestLeaseOfFailedOpen(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 10*kvstore.BlockSize)
	r.set.opt.Lease.TTL = 300 * time.Millisecond
	v := r.open("v")
	r.write(v, 0, pattern(kvstore.BlockSize, 1))
	r.crash()
	r.set.opt.Lease.TTL = 300 * time.Millisecond
	other := r.machineOn(r.store, Options{Lease: pool.LeaseOptions{Wait: time.Minute}})
	o, err := other.Open(ctx, "v", true)
	must(t, err)
	must(t, o.Close(ctx))
	hung, cancel := context.WithCancel(ctx)
	before := func(context.Context, []*kvstore.Op) { cancel() } // while the map is read
	r.store.before.Store(&before)
	_, err = r.set.Open(hung, "v", true)
	r.store.before.Store(nil)
	if err == nil {
		t.Fatal("the open did not fail")
	}
	o, err = other.Open(ctx, "v", true)
	must(t, err)
	must(t, o.Close(ctx))
}

// TestCloseThatCannotRelease: a server was emptied, so the volume is closed with an error;
// its lease could not be released either. It runs out then.
func TestCloseThatCannotRelease(t *testing.T) {
	m := mem.New(mem.Config{Servers: 3})
	st := &swapped{Store: m}
	r := newRigOn(t, "own", st)
	r.create("v", 1000*kvstore.BlockSize)
	r.set.opt.Lease.TTL = time.Hour // no renewal comes in between
	v := r.open("v")
	r.write(v, 0, pattern(1000*kvstore.BlockSize, 1))
	m.Forget(2)
	before, failed := failOnce(":lease:", 0, 1, 2)
	st.before = before
	if err := v.Close(ctx); !errors.Is(err, kvstore.ErrServerLost) {
		t.Fatalf("close: %v", err)
	}
	if !*failed || r.set.opened("v") != nil {
		t.Fatal("the release did not fail, or the volume is still open")
	}
	if v.lease.Load().Over() == nil {
		t.Error("the volume is closed and its lease is renewed on and on")
		v.lease.Load().Abandon()
	}
}

// TestReadAcrossUpgrade: a read of a volume that is open for reading is under way while it
// is opened for writing too, and its block discarded. The block is a hole then, not lost.
func TestReadAcrossUpgrade(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 10*kvstore.BlockSize)
	v := r.open("v")
	r.write(v, 0, pattern(kvstore.BlockSize, 1))
	must(t, v.Close(ctx))
	v, err := r.set.Open(ctx, "v", false)
	must(t, err)
	gate, arrived, armed := make(chan struct{}), make(chan struct{}), true
	before := func(_ context.Context, ops []*kvstore.Op) {
		if armed && ops[0].Code == kvstore.Read && ops[0].Key.Kind == kvstore.KindBlock {
			armed = false
			close(arrived)
			<-gate
		}
	}
	r.store.before.Store(&before)
	w, err := r.set.Worker(ctx)
	must(t, err)
	req := Request{Kind: Read, Vol: v, Data: make([]byte, kvstore.BlockSize)}
	done := make(chan struct{})
	go func() { w.Do(ctx, []*Request{&req}); close(done) }()
	<-arrived
	r.open("v") // in place
	must(t, r.do(Request{Kind: Discard, Vol: v, N: kvstore.BlockSize}))
	r.reap(v)
	close(gate)
	<-done
	r.store.before.Store(nil)
	must(t, w.Close())
	rec, err := r.pool.Volume(ctx, "v")
	must(t, err)
	if req.Err != nil || rec.Damaged {
		t.Errorf("read of a block that was discarded: %v; marked as damaged: %v", req.Err, rec.Damaged)
	}
	must(t, v.Close(ctx))
	must(t, v.Close(ctx))
}

// fencedOnce answers the first batch as if the lease had run out.
type fencedOnce struct {
	kvstore.Channel
	batches int
}

func (c *fencedOnce) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.batches++; c.batches > 1 {
		c.Channel.Do(ctx, ops)
		return
	}
	for _, op := range ops {
		op.Err = kvstore.ErrFenced
	}
}

// TestRemovalOutlivesALateRenewal: the lease is renewed late while keys are deleted; the
// removal waits for it and goes on.
func TestRemovalOutlivesALateRenewal(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 10*kvstore.BlockSize)
	v := r.open("v")
	must(t, r.set.withChannel(ctx, func(ch kvstore.Channel) error {
		once := &fencedOnce{Channel: ch}
		d := &removal{set: r.set, ch: once, lease: v.lease.Load()}
		d.ops = []kvstore.Op{{Code: kvstore.Discard, Key: kvstore.Key{Layer: v.layer, Number: 3}, Count: 1, Fence: v.fence.Load()}}
		if err := d.send(ctx); err != nil || once.batches != 2 || d.done != 1 {
			t.Errorf("%v after %d batches, %d deleted", err, once.batches, d.done)
		}
		return nil
	}))
	must(t, v.Close(ctx))
}
