package volume

import (
	"bytes"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestTryAnswersWhatIsDone: requests whose blocks were answered have their
// results when Try returns; the others are marked and get theirs by Finish.
func TestTryAnswersWhatIsDone(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 64*4096)
	v := r.open("v")
	r.write(v, 0, pattern(16*4096, 1))
	silent := func(op *kvstore.Op) bool { return op.Key.Number >= 8 && op.Key.Kind == kvstore.KindBlock }
	r.store.leave.Store(&silent)
	w, err := r.set.Worker(ctx)
	must(t, err)
	defer w.Close()
	a := &Request{Kind: Read, Vol: v, Off: 0, Data: make([]byte, 4096)}
	b := &Request{Kind: Write, Vol: v, Off: 4*4096 + 7, Data: []byte("part")}
	c := &Request{Kind: Read, Vol: v, Off: 7 * 4096, Data: make([]byte, 2*4096)} // half and half
	d := &Request{Kind: Write, Vol: v, Off: 9 * 4096, Data: pattern(4096, 5)}
	if w.Try(ctx, []*Request{a, b, c, d}) {
		t.Fatal("nothing was left")
	}
	if a.Left || a.Err != nil || !bytes.Equal(a.Data, pattern(16*4096, 1)[:4096]) {
		t.Errorf("a read of blocks that were answered: left %v, %v", a.Left, a.Err)
	}
	if !c.Left || !d.Left {
		t.Errorf("left: %v and %v, want both", c.Left, d.Left)
	}
	// While d holds the claim of its block another worker does not wait for it
	// for ever, but leaves as well.
	w2, err := r.set.Worker(ctx)
	must(t, err)
	defer w2.Close()
	none := func(*kvstore.Op) bool { return false }
	r.store.leave.Store(&none)
	e := &Request{Kind: Write, Vol: v, Off: 9 * 4096, Data: pattern(4096, 6)}
	if w2.Try(ctx, []*Request{e}) || !e.Left {
		t.Errorf("a write of a block whose claim is held: left %v, %v", e.Left, e.Err)
	}
	done := make(chan struct{})
	go func() { w2.Finish(ctx); close(done) }()
	w.Finish(ctx)
	<-done
	for i, q := range []*Request{a, b, c, d, e} {
		if q.Err != nil || q.Left { // what is left is not counted
			t.Errorf("request %d: %v, left %v", i, q.Err, q.Left)
		}
	}
	if got := r.read(v, 9*4096, 4096); !bytes.Equal(got, pattern(4096, 6)) {
		t.Error("the later write is not what is read")
	}
	if got := r.read(v, 4*4096+7, 4); string(got) != "part" {
		t.Errorf("the partial write reads as %q", got)
	}
	if !bytes.Equal(c.Data, pattern(16*4096, 1)[7*4096:9*4096]) {
		t.Error("the read that was left has other data")
	}
}
