package fusefs

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// lateWorker leaves requests whose Off is not 0 behind, until the test says that their
// server answers. Those that need another operation then it lets go.
type lateWorker struct {
	servers *lateServers
	left    []*volume.Request
}

type lateServers struct {
	mu      sync.Mutex
	answers map[int64]bool
	twice   map[int64]bool // there is more to send after the answer
}

func (s *lateServers) answer(off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[off] = true
}

func (w *lateWorker) Do(ctx context.Context, reqs []*volume.Request) {
	for w.Try(ctx, reqs); len(w.left) > 0; {
		w.Try(ctx, nil)
	}
}

func (w *lateWorker) Try(_ context.Context, reqs []*volume.Request) bool {
	if len(reqs) == 0 {
		time.Sleep(time.Millisecond)
	}
	w.servers.mu.Lock()
	defer w.servers.mu.Unlock()
	var left []*volume.Request
	for _, r := range append(w.left, reqs...) {
		r.Again = false
		r.Left = r.Off != 0 && (!w.servers.answers[r.Off] || w.servers.twice[r.Off])
		if r.Left {
			left = append(left, r)
		}
	}
	w.left = left
	return len(left) == 0
}

// LetGo lets those go that need another operation, while others are left.
func (w *lateWorker) LetGo() {
	w.servers.mu.Lock()
	defer w.servers.mu.Unlock()
	var left []*volume.Request
	for _, r := range w.left {
		if w.servers.answers[r.Off] && w.servers.twice[r.Off] {
			w.servers.twice[r.Off] = false
			r.Left, r.Again = false, true
		} else {
			left = append(left, r)
		}
	}
	w.left = left
}

func (w *lateWorker) Close() error { return nil }

// lateDispatcher has a dispatcher whose requests wait for servers that are named by their
// offset.
func lateDispatcher(t *testing.T) (*dispatcher, *lateServers) {
	servers := &lateServers{answers: map[int64]bool{}, twice: map[int64]bool{}}
	d := newDispatcher(context.Background(), func(context.Context) (worker, error) { return &lateWorker{servers: servers}, nil }, 1, t.Logf)
	d.patience = 0
	return d, servers
}

// together has calls for servers served as one batch of a lane of g, and returns the ends
// of each. The lane is led by the test until all queue.
func together(t *testing.T, d *dispatcher, g *group, posted bool, calls ...volume.Request) (ends []chan struct{}) {
	t.Helper()
	l := (*g.lanes.Load())[0]
	if !l.head.CompareAndSwap(nil, busy) {
		t.Fatal("the lane is led")
	}
	post := newPoster(d)
	for i, req := range calls {
		ended := make(chan struct{})
		ends = append(ends, ended)
		go func() {
			if posted {
				_ = post.do(g, req.Off, nil)
			} else {
				_ = d.serve(g, req)
			}
			close(ended)
		}()
		n := int32(i + 1)
		waitFor(t, "a call queues", func() bool { return l.load.Load() == n })
	}
	l.handOver()
	return ends
}

func over(ended chan struct{}) bool {
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// TestLateAndDeadServer: of requests that were left behind together each is answered when
// its own server has answered, not when the last one has: where a worker leaves, where
// there is no room for that, and on the lane of silent servers. What has more to send
// than the busy channel takes goes to another worker.
func TestLateAndDeadServer(t *testing.T) {
	const late, dead, twice, first = 1, 2, 3, 4
	for _, posted := range []bool{false, true} {
		for _, room := range []int32{0, 4} {
			for _, silent := range []bool{false, true} {
				d, servers := lateDispatcher(t)
				servers.twice[twice], servers.twice[first] = true, true
				servers.answer(first)
				d.stragglers.most = room
				g := &d.bulk
				if silent {
					g = &d.silent
				}
				var reqs []volume.Request
				for _, off := range []int64{late, dead, twice, late, 0, first} {
					reqs = append(reqs, volume.Request{Kind: volume.Read, Off: off})
				}
				ends := together(t, d, g, posted, reqs...)
				ended := func(i int, what string) {
					t.Helper()
					waitFor(t, what, func() bool { d.relieve(&d.bulk); return over(ends[i]) })
				}
				ended(4, "a prompt server's")
				ended(5, "a prompt server's that has more to send")
				servers.answer(twice)
				ended(2, "a late server's that has more to send")
				if over(ends[0]) || over(ends[3]) {
					t.Error("answered before its server has")
				}
				servers.answer(late)
				waitFor(t, "a late server's, beside a dead one", func() bool { return over(ends[0]) && over(ends[3]) })
				if over(ends[1]) || d.bulk.queued()+d.silent.queued() > 1 {
					t.Errorf("a dead server's is answered, or %d and %d queue", d.bulk.queued(), d.silent.queued())
				}
				servers.answer(dead)
				waitFor(t, "the dead server's", func() bool { return over(ends[1]) })
				if n := d.bulk.queued() + d.silent.queued(); n != 0 {
					t.Errorf("%d calls at the end", n)
				}
				if n, _ := d.flying.look(); n != 0 {
					t.Errorf("%d requests under way", n)
				}
				if err := d.close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// TestLateAndDeadServerInPlace: the same for what a thread serves itself.
func TestLateAndDeadServerInPlace(t *testing.T) {
	const late, dead, twice, first = 1, 2, 3, 4
	d, servers := lateDispatcher(t)
	servers.twice[twice], servers.twice[first] = true, true
	servers.answer(first)
	post := newPoster(d)
	post.to.lanes, post.to.calls = []*lane{newLane(d)}, make([][]hotCall, 1)
	d.inplace.add(post.to.lanes[0])
	var calls []hotCall
	answers := map[int64]*answer{}
	for _, off := range []int64{late, dead, twice, first} {
		answers[off] = &answer{said: make(chan int, 1)}
		calls = append(calls, hotCall{e: answers[off], h: post.h, slot: d.flying.enter(volume.Read, nil, off, 1),
			req: volume.Request{Kind: volume.Read, Off: off, Data: make([]byte, 1)}})
	}
	post.to.serve(0, calls)
	said := func(off int64) bool { return len(answers[off].said) > 0 }
	waitFor(t, "a prompt server's that has more to send", func() bool { return said(first) })
	servers.answer(twice)
	waitFor(t, "a late server's that has more to send", func() bool { return said(twice) })
	servers.answer(late)
	waitFor(t, "a late server's, beside a dead one", func() bool { return said(late) })
	if said(dead) {
		t.Error("answered before its server has")
	}
	servers.answer(dead)
	waitFor(t, "the dead server's", func() bool { return said(dead) })
	waitFor(t, "nothing is under way", func() bool { n, _ := d.flying.look(); return n == 0 })
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

// TestSlowLaneIsForOneVolume: an FSYNC or FALLOCATE of one volume does not wait for a
// server that is silent because one of another volume queues before it; those of one
// volume are one batch.
func TestSlowLaneIsForOneVolume(t *testing.T) {
	a, b := new(volume.Volume), new(volume.Volume)
	gate := make(chan struct{})
	var mu sync.Mutex
	batches := map[*volume.Volume][]int{}
	d, _ := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		for _, r := range reqs {
			if r.Vol != reqs[0].Vol {
				t.Error("a batch of two volumes")
			}
		}
		mu.Lock()
		batches[reqs[0].Vol] = append(batches[reqs[0].Vol], len(reqs))
		mu.Unlock()
		if reqs[0].Vol == a {
			<-gate
		}
	})
	d.patience = 0
	flush := func(v *volume.Volume) volume.Request { return volume.Request{Kind: volume.Flush, Vol: v} }
	g, l := new(group), newLane(d)
	l.sole = true
	g.add(l)
	ends := together(t, d, g, false, flush(a), flush(b), flush(a), flush(b))
	waitFor(t, "the flushes of the other volume", func() bool {
		d.relieve(g)
		return over(ends[1]) && over(ends[3])
	})
	if over(ends[0]) || over(ends[2]) {
		t.Error("answered before the server has")
	}
	close(gate)
	waitFor(t, "all", func() bool { return over(ends[0]) && over(ends[2]) })
	if len(batches[a]) != 1 || len(batches[b]) != 1 {
		t.Errorf("batches of %v and %v, want one of 2 each", batches[a], batches[b])
	}
	if n := len(*g.lanes.Load()); n != 2 {
		t.Errorf("%d lanes, want that of each volume", n)
	}
	if !slices.ContainsFunc(*d.slow.lanes.Load(), func(l *lane) bool { return l.sole }) {
		t.Error("no lane of FSYNC is such a lane")
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}
