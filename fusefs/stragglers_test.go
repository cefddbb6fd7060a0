package fusefs

import (
	"context"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Offsets of requests that a partingWorker treats apart.
const (
	promptOff = iota
	silentOff // left behind by Try, until the server speaks
	gateOff   // holds the whole batch up, until the gate opens
)

// partingWorker leaves some requests of a batch behind.
type partingWorker struct {
	gate, speaks <-chan struct{}
	left         []*volume.Request
}

func (w *partingWorker) Do(ctx context.Context, reqs []*volume.Request) {
	if !w.Try(ctx, reqs) {
		w.Finish(ctx)
	}
}

func (w *partingWorker) Try(_ context.Context, reqs []*volume.Request) bool {
	if len(reqs) == 0 && len(w.left) > 0 {
		w.Finish(context.Background())
		w.left = nil
		return true
	}
	w.left = nil
	for _, r := range reqs {
		switch r.Off {
		case gateOff:
			<-w.gate
		case silentOff:
			r.Left = true
			w.left = append(w.left, r)
		}
	}
	return len(w.left) == 0
}

func (w *partingWorker) Finish(context.Context) {
	<-w.speaks
	for _, r := range w.left {
		r.Left = false
	}
}

func (w *partingWorker) LetGo() {}

func (w *partingWorker) Close() error { return nil }

// TestNoRoomForStragglers: while as many workers wait for silent servers as may, what
// is in one batch with a request for such a server does not wait with it, be it the
// leader or not, nor does what queues behind; be it waited for or posted.
func TestNoRoomForStragglers(t *testing.T) {
	for i, first := range []int64{promptOff, silentOff, promptOff, silentOff} {
		gate, speaks := make(chan struct{}), make(chan struct{})
		d := newDispatcher(context.Background(), func(context.Context) (worker, error) {
			return &partingWorker{gate: gate, speaks: speaks}, nil
		}, 1, t.Logf)
		d.patience = 0
		d.stragglers.most = 1
		post := newPoster(d)
		l := (*d.bulk.lanes.Load())[0]
		var all sync.WaitGroup
		do := func(off int64) <-chan struct{} {
			done := make(chan struct{})
			all.Go(func() {
				if i < 2 {
					_ = d.do(&d.bulk, volume.Read, nil, off, 0, nil)
				} else {
					_ = post.do(&d.bulk, off, nil)
				}
				close(done)
			})
			return done
		}
		must := func(what string, done <-chan struct{}) {
			t.Helper()
			waitFor(t, what, func() bool {
				d.relieve(&d.bulk)
				select {
				case <-done:
					return true
				default:
					return false
				}
			})
		}
		do(silentOff)
		waitFor(t, "the only straggler", func() bool { return !d.stragglers.room() && l.load.Load() == 0 })

		// More than a batch queues behind the gate, led by a prompt or a silent call.
		gated := do(gateOff)
		waitFor(t, "the gate is reached", func() bool { return l.began.Load() != 0 })
		var prompt []<-chan struct{}
		queue := func(off int64) {
			n := l.load.Load()
			if done := do(off); off == promptOff {
				prompt = append(prompt, done)
			}
			waitFor(t, "a call queues", func() bool { return l.load.Load() > n })
		}
		queue(first)
		queue(silentOff + promptOff - first)
		for range 2 * volume.MaxRequests {
			queue(promptOff)
		}
		close(gate)
		must("the gated call returns", gated)
		for _, done := range prompt {
			must("a prompt call returns beside one for a silent server", done)
		}
		must("a call that comes later returns", do(promptOff))
		if d.bulk.queued() != 1 {
			t.Errorf("%d calls under way, want the silent one", d.bulk.queued())
		}
		close(speaks)
		all.Wait()
		waitFor(t, "all lanes are idle", func() bool { return l.head.Load() == nil && l.began.Load() == 0 && !l.stuck.Load() })
		if n := d.bulk.queued(); n != 0 || !d.stragglers.room() {
			t.Errorf("load %d, room %v at the end", n, d.stragglers.room())
		}
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestStragglerStress: batches part, lanes are held and relieved, all at once; each call
// returns once, and every lane is idle in the end.
func TestStragglerStress(t *testing.T) {
	for most := range int32(3) {
		speaks := make(chan struct{})
		close(speaks)
		d := newDispatcher(context.Background(), func(context.Context) (worker, error) {
			return &partingWorker{speaks: speaks}, nil
		}, 2, t.Logf)
		d.patience, d.stragglers.most = 0, most
		post := newPoster(d)
		quit, gone := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(gone)
			for {
				select {
				case <-quit:
					return
				default:
					d.relieve(&d.bulk)
				}
			}
		}()
		var all sync.WaitGroup
		for i := range 64 {
			all.Go(func() {
				for n := range 200 {
					off := int64((n + i) % 4 / 3) // a quarter is left
					if i%2 == 0 {
						_ = d.do(&d.bulk, volume.Read, nil, off, 0, nil)
					} else {
						_ = post.do(&d.bulk, off, nil)
					}
				}
			})
		}
		all.Wait()
		close(quit)
		<-gone
		d.stragglers.wait.Wait()
		for i, l := range *d.bulk.lanes.Load() {
			if l.head.Load() != nil || l.rest != nil || l.load.Load() != 0 || l.stuck.Load() || l.began.Load() != 0 {
				t.Errorf("most %d: lane %d: head %v, rest %v, load %d, stuck %v, began %d", most, i, l.head.Load(), l.rest, l.load.Load(), l.stuck.Load(), l.began.Load())
			}
		}
		if n, _ := d.flying.look(); n != 0 {
			t.Errorf("%d requests under way", n)
		}
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}
}
