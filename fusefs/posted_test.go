package fusefs

import (
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/fusefs/uring"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// poster hands calls to lanes as inplace.apart does, and waits for the answers.
type poster struct {
	to *inplace
	h  *handle
}

func newPoster(d *dispatcher) *poster {
	return &poster{to: &inplace{d: d, t: &tree{quiet: newLimiter(func(string, ...any) {})}}, h: &handle{n: &node{name: "v"}}}
}

// do posts a read of one byte or more and returns what it is answered with.
func (p *poster) do(g *group, off int64, data []byte) (errno int) {
	e := &answer{said: make(chan int, 1)}
	p.to.apart(g, hotCall{e: e, h: p.h, slot: p.to.d.flying.enter(volume.Read, nil, off, int64(len(data))),
		req: volume.Request{Kind: volume.Read, Off: off, Data: data}})
	errno = <-e.said
	if n := e.times.Load(); n != 1 {
		panic("answered more than once")
	}
	return errno
}

// answer is an entry of which only the answer matters.
type answer struct {
	said  chan int
	times atomic.Int32
}

func (*answer) In() *uring.InHeader { return nil }
func (*answer) Args() []byte        { return nil }
func (*answer) Payload() []byte     { return nil }
func (*answer) Buffer() []byte      { return nil }
func (*answer) Raw() []byte         { return nil }
func (*answer) LaterRaw([]byte)     { panic("not asked for") }
func (*answer) Reply(int, int)      { panic("not on the thread that took it") }
func (e *answer) Later(errno, _ int) {
	e.times.Add(1)
	e.said <- errno
}

// TestPostedCallsOfOneLane: what is posted while the lane's own goroutine serves is one
// next batch, beside calls that somebody waits for, whoever leads.
func TestPostedCallsOfOneLane(t *testing.T) {
	gate, sizes := make(chan struct{}), make(chan int, 8)
	d, _ := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		<-gate
		sizes <- len(reqs)
	})
	p, l := newPoster(d), (*d.bulk.lanes.Load())[0]
	all := make(chan int)
	for i, post := range []bool{true, false, true, true, false} {
		go func() {
			if post {
				all <- p.do(&d.bulk, int64(i), make([]byte, 1))
			} else {
				_ = d.do(&d.bulk, volume.Read, nil, int64(i), 0, nil)
				all <- 0
			}
		}()
		waitFor(t, "a call queues", func() bool { return int(l.load.Load()) == i+1 })
	}
	close(gate)
	for range 5 {
		if errno := <-all; errno != 0 {
			t.Errorf("errno %d", errno)
		}
	}
	if first, second := <-sizes, <-sizes; first != 1 || second != 4 {
		t.Errorf("batches of %d and %d, want 1 and 4", first, second)
	}
	waitFor(t, "the lane is idle", func() bool { return l.head.Load() == nil })
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if err := d.close(); err != nil { // as Server.Close may be called again
		t.Error(err)
	}
}

// TestClosedUnderPostedCalls: where a ring broke, calls may be queued when the dispatcher is
// closed. They get no answer, and nothing worse.
func TestClosedUnderPostedCalls(t *testing.T) {
	gate := make(chan struct{})
	d, _ := fakeDispatcher(t, 1, func([]*volume.Request) { <-gate })
	p, l := newPoster(d), (*d.bulk.lanes.Load())[0]
	for i := range 2 {
		p.to.apart(&d.bulk, hotCall{e: &answer{said: make(chan int, 1)}, h: p.h, slot: -1, req: volume.Request{Kind: volume.Read, Data: make([]byte, 1)}})
		waitFor(t, "a call queues", func() bool { return int(l.load.Load()) == i+1 })
	}
	waitFor(t, "the batch under way", func() bool { return l.began.Load() != 0 })
	d.dismiss.Do(func() { close(d.dismissed) }) // close would wait for the worker
	close(gate)
	waitFor(t, "the batch has ended", func() bool { return l.began.Load() == 0 })
}

// TestPostedCallsAllocateNothing: nor does the goroutine that serves them.
func TestPostedCallsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	d, _ := fakeDispatcher(t, 1, func([]*volume.Request) {})
	p, e := newPoster(d), &answer{said: make(chan int, 1)}
	hot := hotCall{e: e, h: p.h, slot: -1, req: volume.Request{Kind: volume.Read, Data: make([]byte, 1)}}
	if n := testing.AllocsPerRun(1000, func() {
		p.to.apart(&d.bulk, hot)
		<-e.said
	}); n >= 1 {
		t.Errorf("%v allocations per request", n)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}
