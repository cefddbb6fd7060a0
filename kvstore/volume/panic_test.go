package volume

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// patient bounds what must not wait for ever.
const patient = 30 * time.Second

// panicOnce makes the next batch that has a matching operation panic, before or
// after the store has executed it.
func (r *rig) panicOnce(after bool, match func(op *kvstore.Op) bool) {
	var hit atomic.Bool
	look := func(ops []*kvstore.Op) {
		for _, op := range ops {
			if match(op) && hit.CompareAndSwap(false, true) {
				panic("planted")
			}
		}
	}
	if after {
		r.store.after.Store(&look)
		return
	}
	before := func(_ context.Context, ops []*kvstore.Op) { look(ops) }
	r.store.before.Store(&before)
}

// panics runs requests on a worker of their own, which must panic, and closes it.
func (r *rig) panics(reqs ...*Request) {
	r.t.Helper()
	w, err := r.set.Worker(ctx)
	must(r.t, err)
	none := func(*kvstore.Op) bool { return false } // the panic finds the whole batch
	r.store.leave.Store(&none)
	defer r.store.leave.Store(nil)
	err = kvstore.Contain(func() error { w.Do(ctx, reqs); return nil })
	if !errors.Is(err, kvstore.ErrPanic) {
		r.t.Fatalf("the panic did not arrive: %v", err)
	}
	must(r.t, w.Close())
	r.store.before.Store(nil)
	r.store.after.Store(nil)
}

// inTime fails the test if f does not return.
func (r *rig) inTime(what string, f func()) {
	r.t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patient):
		r.t.Fatal(what, "waits for ever")
	}
}

// TestPanicLetsGo: a worker that panics in the middle of a batch keeps neither
// claims nor the volume: others write the same blocks, whole and in part, and the
// volume closes.
func TestPanicLetsGo(t *testing.T) {
	for _, after := range []bool{false, true} {
		eachStore(t, func(t *testing.T, r *rig) {
			r.create("v", 1<<20)
			v := r.open("v")
			old, mine, newer := pattern(4096, 1), pattern(4096, 2), pattern(4096, 3)
			r.write(v, 0, old)
			r.write(v, 8192, old)
			r.panicOnce(after, func(op *kvstore.Op) bool { return op.Code == kvstore.Write && op.Key.Kind == kvstore.KindBlock })
			reqs := []*Request{
				{Kind: Write, Vol: v, Data: mine},
				{Kind: Write, Vol: v, Off: 4096, Data: mine}, // was a hole
				{Kind: Write, Vol: v, Off: 8192 + 512, Data: mine[:512]},
				{Kind: Read, Vol: v, Off: 8192, Data: make([]byte, 4096)},
				{Kind: Flush, Vol: v},
			}
			r.panics(reqs...)
			for i, req := range reqs {
				if i < 3 && !errors.Is(req.Err, kvstore.ErrPanic) {
					t.Errorf("request %d: %v", i, req.Err)
				}
			}
			r.inTime("a write of the same blocks", func() {
				for _, off := range []int64{0, 4096} {
					if got := r.read(v, off, 4096); !bytes.Equal(got, mine) && !bytes.Equal(got, old) && !zero(got) {
						t.Errorf("offset %d is neither old nor new", off)
					}
					r.write(v, off, newer)
				}
				r.write(v, 8192+1024, newer[:512])
				r.flush(v)
			})
			for _, off := range []int64{0, 4096} {
				if !bytes.Equal(r.read(v, off, 4096), newer) {
					t.Errorf("offset %d is not what was written after the panic", off)
				}
			}
			if v.m.Load() != nil {
				r.reap(v) // what the panic left in doubt is not what was written since
			}
			if !bytes.Equal(r.read(v, 4096, 4096), newer) {
				t.Error("the reaper deleted what was written after the panic")
			}
			r.inTime("the close", func() { must(t, v.Close(ctx)) })
		})
	}
}

// TestPanicInFlush: a flush that a panic cut off has stored nothing, so the next
// one stores it all: it survives a crash of the machine.
func TestPanicInFlush(t *testing.T) {
	for _, after := range []bool{false, true} {
		r := newRig(t, "mem3")
		r.create("v", 1<<30)
		v := r.open("v")
		data := pattern(4096, 1)
		places := []int64{0, bitsPerPage * 4096, 2 * bitsPerPage * 4096}
		for _, off := range places {
			r.write(v, off, data)
		}
		r.panicOnce(after, func(op *kvstore.Op) bool { return op.Code == kvstore.Write && op.Key.Kind == kvstore.KindMap })
		req := &Request{Kind: Flush, Vol: v}
		r.panics(req)
		if req.Err == nil {
			t.Error("a flush that was cut off says that it succeeded")
		}
		r.inTime("the next flush", func() { r.flush(v) })
		r.crash()
		r.loseState()
		v = r.open("v")
		for _, off := range places {
			if !bytes.Equal(r.read(v, off, 4096), data) {
				t.Errorf("offset %d was flushed after the panic and is gone", off)
			}
		}
	}
}

// TestPanicInReaper: the reaper goes on after a panic, without the claims that it
// held, and what it was about to delete is deleted.
func TestPanicInReaper(t *testing.T) {
	for _, kind := range []kvstore.Kind{kvstore.KindBlock, kvstore.KindMap} {
		for _, after := range []bool{false, true} {
			r := newRig(t, "mem")
			r.set.reapDelay, r.set.reapRetry = time.Millisecond, time.Millisecond
			r.create("v", 1<<20)
			v := r.open("v")
			r.write(v, 0, pattern(16*4096, 1))
			r.flush(v)
			before := r.mem().Blocks()
			r.panicOnce(after, func(op *kvstore.Op) bool {
				return op.Key.Kind == kind && (op.Code == kvstore.Discard || kind == kvstore.KindMap && op.Code == kvstore.Write)
			})
			must(t, r.do(Request{Kind: Discard, Vol: v, N: 16 * 4096}))
			r.inTime("the reaper", func() {
				for r.mem().Blocks() > before-16 {
					time.Sleep(time.Millisecond)
				}
			})
			r.inTime("a write of what was deleted", func() { r.write(v, 0, pattern(4096, 2)) })
			r.inTime("the close", func() { must(t, v.Close(ctx)) })
		}
	}
}

// TestPanicInOpenAndClose: neither leaves the volume half open.
func TestPanicInOpenAndClose(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<20)
	isPage := func(op *kvstore.Op) bool { return op.Key.Kind != kvstore.KindBlock }
	open := func() (v *Volume, err error) {
		err = kvstore.Contain(func() (err error) { v, err = r.set.Open(ctx, "v", true); return err })
		return v, err
	}
	r.panicOnce(false, isPage)
	if _, err := open(); !errors.Is(err, kvstore.ErrPanic) {
		t.Fatal(err)
	}
	v, err := open()
	must(t, err)
	r.write(v, 0, pattern(4096, 1))
	r.panicOnce(false, isPage)
	if err := kvstore.Contain(func() error { return v.Close(ctx) }); !errors.Is(err, kvstore.ErrPanic) {
		t.Fatal(err)
	}
	if !bytes.Equal(r.read(v, 0, 4096), pattern(4096, 1)) {
		t.Error("a volume whose close was cut off does not serve")
	}
	r.write(v, 4096, pattern(4096, 2))
	r.inTime("the close", func() { must(t, v.Close(ctx)) })
}
