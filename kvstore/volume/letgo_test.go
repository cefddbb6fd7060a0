package volume

import (
	"bytes"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// between leaves requests for the blocks of two servers behind: what is from dead on is
// one's, what is from late on and below the other's until it answers.
func between(r *rig, late, dead uint64) (answers *atomic.Bool) {
	answers = new(atomic.Bool)
	leave := func(op *kvstore.Op) bool {
		n := op.Key.Number
		return op.Key.Kind == kvstore.KindBlock && (n >= dead || n >= late && !answers.Load())
	}
	r.store.leave.Store(&leave)
	return answers
}

// TestTryGoesOn: of requests for two servers that were left behind together, each has its
// result, and its claims are free, when its own server has answered; what has to send more
// then, or first, is let go and done by another worker.
func TestTryGoesOn(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 256*4096)
	v := r.open("v")
	model := pattern(256*4096, 1)
	r.write(v, 0, model)
	answers := between(r, 64, 128)
	w, err := r.set.Worker(ctx)
	must(t, err)
	defer w.Close()
	write := func(block, from int64, data []byte) *Request {
		copy(model[block*4096+from:], data)
		return &Request{Kind: Write, Vol: v, Off: block*4096 + from, Data: data}
	}
	dead := write(130, 0, pattern(4096, 2))
	late := write(70, 0, pattern(4096, 3))
	lateTwice := write(72, 5, []byte("part")) // read, then written
	lateLarge := write(80, 0, pattern(2*maxWriteShare*4096, 4))
	read := &Request{Kind: Read, Vol: v, Off: 75 * 4096, Data: make([]byte, 4096)}
	prompt := write(2, 5, []byte("part"))
	promptLarge := write(10, 0, pattern(2*maxWriteShare*4096, 5))
	all := []*Request{dead, late, lateTwice, lateLarge, read, prompt, promptLarge}
	if w.Try(ctx, all) {
		t.Fatal("nothing was left")
	}
	w.LetGo()
	for i, q := range all {
		if again := q == prompt || q == promptLarge; q.Again != again || q.Left == again {
			t.Errorf("request %d: left %v, again %v", i, q.Left, q.Again)
		}
	}
	if promptLarge.done != maxWriteShare {
		t.Errorf("%d blocks are done of a large request", promptLarge.done)
	}
	try := func(again ...*Request) {
		t.Helper()
		r.w.Do(ctx, again)
		for i, q := range again {
			if q.Err != nil || q.Left || q.Again || q.done != 0 {
				t.Errorf("request %d by another worker: %v, left %v, again %v, done %d", i, q.Err, q.Left, q.Again, q.done)
			}
		}
	}
	try(prompt, promptLarge)
	if w.Try(ctx, nil) || !late.Left {
		t.Errorf("the late server has not answered: left %v", late.Left)
	}
	answers.Store(true)
	if w.Try(ctx, nil) {
		t.Fatal("the dead server has not answered")
	}
	w.LetGo()
	if late.Left || late.Again || late.Err != nil || read.Left || read.Err != nil || !dead.Left {
		t.Errorf("left: late %v, read %v, dead %v", late.Left, read.Left, dead.Left)
	}
	if !lateTwice.Again || !lateLarge.Again {
		t.Errorf("again: %v and %v, want both", lateTwice.Again, lateLarge.Again)
	}
	// Their claims are free.
	try(lateTwice, lateLarge, write(70, 0, pattern(4096, 6)), write(72, 100, []byte("more")))
	if !bytes.Equal(read.Data, model[75*4096:76*4096]) {
		t.Error("the read that was left has other data")
	}
	none := func(*kvstore.Op) bool { return false }
	r.store.leave.Store(&none)
	if !w.Try(ctx, nil) || dead.Left || dead.Err != nil {
		t.Errorf("the dead server's request: left %v, %v", dead.Left, dead.Err)
	}
	if got := r.read(v, 0, 256*4096); !bytes.Equal(got, model) {
		t.Error(firstDiff(got, model))
	}
	for i := range r.set.claims.words {
		if r.set.claims.words[i].Load() != 0 {
			t.Errorf("claim %d is held", i)
		}
	}
}

// TestLetGoOfOtherTimeouts: requests of a volume with another timeout do not begin when
// those before them end.
func TestLetGoOfOtherTimeouts(t *testing.T) {
	r := newRig(t, "mem")
	r.create("a", 256*4096)
	r.create("b", 256*4096)
	a, b := r.open("a"), r.open("b")
	r.write(a, 200*4096, pattern(4096, 1))
	a.SetTimeout(time.Hour)
	between(r, 128, 128)
	w, err := r.set.Worker(ctx)
	must(t, err)
	defer w.Close()
	dead := &Request{Kind: Read, Vol: a, Off: 200 * 4096, Data: make([]byte, 4096)}
	other := &Request{Kind: Write, Vol: b, Off: 0, Data: pattern(4096, 2)}
	if w.Try(ctx, []*Request{dead, other}) {
		t.Fatal("nothing was left")
	}
	if w.LetGo(); !other.Again || other.Left || !dead.Left {
		t.Errorf("again: %v, left: %v and %v", other.Again, other.Left, dead.Left)
	}
	if r.w.Do(ctx, []*Request{other}); other.Err != nil {
		t.Error(other.Err)
	}
	if w.Finish(ctx); dead.Err != nil || dead.Left {
		t.Errorf("left %v, %v", dead.Left, dead.Err)
	}
}
