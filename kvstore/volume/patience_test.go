package volume

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestTimeoutOfWaiting: a timeout that is set while requests wait counts for them,
// whether the store polls its context or waits for its end.
func TestTimeoutOfWaiting(t *testing.T) {
	for name, wait := range map[string]func(ctx context.Context){
		"done": func(ctx context.Context) { <-ctx.Done() },
		"poll": func(ctx context.Context) {
			for ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		},
		"child": func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			<-ctx.Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "mem")
			r.create("v", 1<<20)
			v := r.open("v")
			waits := make(chan struct{})
			before := func(ctx context.Context, _ []*kvstore.Op) {
				close(waits)
				wait(ctx)
			}
			req := Request{Kind: Write, Vol: v, Data: pattern(4096, 1)}
			r.write(v, 0, req.Data)
			r.store.before.Store(&before)
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.w.Do(ctx, []*Request{&req})
			}()
			<-waits
			v.SetTimeout(time.Millisecond)
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("it waits for ever")
			}
			r.store.before.Store(nil)
			if !errors.Is(req.Err, kvstore.ErrTimeout) {
				t.Fatal(req.Err)
			}
			v.SetTimeout(0)
			r.write(v, 0, req.Data)
		})
	}
}

// TestShortTimeoutFirst: of requests with different timeouts those that wait for
// ever do not keep the others from theirs.
func TestShortTimeoutFirst(t *testing.T) {
	r := newRig(t, "mem")
	r.create("a", 1<<20)
	r.create("b", 1<<20)
	a, b := r.open("a"), r.open("b")
	r.write(a, 0, pattern(4096, 1))
	r.write(b, 0, pattern(4096, 1))
	b.SetTimeout(time.Hour)
	var order []kvstore.LayerID
	before := func(_ context.Context, ops []*kvstore.Op) { order = append(order, ops[0].Key.Layer) }
	r.store.before.Store(&before)
	for range 20 {
		order = order[:0]
		r.w.Do(ctx, []*Request{
			{Kind: Read, Vol: a, Data: make([]byte, 4096)},
			{Kind: Read, Vol: b, Data: make([]byte, 4096)},
		})
		if len(order) != 2 || order[0] != b.layer {
			t.Fatal("who waits for ever came first")
		}
	}
	r.store.before.Store(nil)
}
