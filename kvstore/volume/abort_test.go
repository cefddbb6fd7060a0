package volume

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// silence makes the store hang in every batch about a layer until its context
// ends, and tells of each.
func (r *rig) silence(layer kvstore.LayerID) (waits chan struct{}, lift func()) {
	waits = make(chan struct{}, 64)
	var off atomic.Bool
	before := func(ctx context.Context, ops []*kvstore.Op) {
		for _, op := range ops {
			if op.Key.Layer == layer && !off.Load() {
				waits <- struct{}{}
				<-ctx.Done()
				return
			}
		}
	}
	r.store.before.Store(&before)
	return waits, func() { off.Store(true) }
}

// TestAbort: what waits on an aborted volume fails, what waited with it on another
// volume is done, and the close asks nobody. What was acknowledged is there when
// the volume is opened again, by this daemon or by the next one.
func TestAbort(t *testing.T) {
	for _, restart := range []bool{false, true} {
		r := newRig(t, "mem3")
		r.create("a", 1<<20)
		r.create("b", 1<<20)
		a, b := r.open("a"), r.open("b")
		acked := pattern(4096, 1)
		r.write(a, 0, acked) // and not flushed
		r.write(b, 0, acked)
		waits, lift := r.silence(a.layer)
		reqs := []*Request{
			{Kind: Write, Vol: a, Off: 4096, Data: pattern(4096, 2)},
			{Kind: Write, Vol: b, Off: 4096, Data: pattern(4096, 2)},
			{Kind: Read, Vol: b, Data: make([]byte, 4096)},
		}
		done := make(chan struct{})
		go func() { defer close(done); r.w.Do(ctx, reqs) }()
		<-waits
		must(t, r.set.Abort("a"))
		r.inTime("a request of an aborted volume", func() { <-done })
		if !errors.Is(reqs[0].Err, ErrVolumeAborted) {
			t.Errorf("the request that waited: %v", reqs[0].Err)
		}
		if reqs[1].Err != nil || reqs[2].Err != nil || !bytes.Equal(reqs[2].Data, acked) {
			t.Errorf("requests of another volume: %v, %v", reqs[1].Err, reqs[2].Err)
		}
		if err := r.do(Request{Kind: Read, Vol: a, Data: make([]byte, 4096)}); !errors.Is(err, ErrVolumeAborted) {
			t.Errorf("a request after the abort: %v", err)
		}
		if _, err := r.set.Open(ctx, "a", false); !errors.Is(err, ErrVolumeAborted) {
			t.Errorf("an open after the abort: %v", err)
		}
		r.inTime("the close", func() { must(t, a.Close(ctx)) })
		lift()
		if restart {
			r.crash()
		}
		a = r.open("a")
		if !bytes.Equal(r.read(a, 0, 4096), acked) {
			t.Error("the abort lost an acknowledged write")
		}
		r.write(a, 4096, pattern(4096, 3))
		must(t, a.Close(ctx))
	}
}

// TestAbortOfClose: an abort also ends a close that waits for a server, and an
// open that does.
func TestAbortOfClose(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	waits, lift := r.silence(v.layer)
	closed := make(chan error, 1)
	go func() { closed <- v.Close(ctx) }()
	<-waits
	must(t, r.set.Abort("v"))
	r.inTime("the close", func() { must(t, <-closed) })

	opened := make(chan error, 1)
	go func() {
		_, err := r.set.Open(ctx, "v", true)
		opened <- err
	}()
	<-waits
	must(t, r.set.Abort("v"))
	r.inTime("the open", func() {
		if err := <-opened; err == nil {
			t.Error("the open succeeded")
		}
	})
	lift()
	v = r.open("v")
	if !bytes.Equal(r.read(v, 0, 4096), pattern(4096, 1)) {
		t.Error("the abort lost an acknowledged write")
	}
	must(t, v.Close(ctx))
	if err := r.set.Abort("v"); !errors.Is(err, kvstore.ErrAbsent) {
		t.Errorf("abort of a volume that is not open: %v", err)
	}
}
