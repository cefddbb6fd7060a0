package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// fakeWorker serves a batch with a function.
type fakeWorker struct {
	serve  func(reqs []*volume.Request)
	inside atomic.Int32
	closed atomic.Bool
}

func (w *fakeWorker) Do(_ context.Context, reqs []*volume.Request) {
	if w.inside.Add(1) != 1 {
		panic("two goroutines in one worker")
	}
	defer w.inside.Add(-1)
	w.serve(reqs)
}

func (w *fakeWorker) Try(ctx context.Context, reqs []*volume.Request) bool {
	w.Do(ctx, reqs)
	return true
}

func (w *fakeWorker) LetGo() {}

func (w *fakeWorker) Close() error { w.closed.Store(true); return nil }

// bench makes a dispatcher of fake workers; workers() returns those opened.
func fakeDispatcher(t testing.TB, lanes int, serve func(reqs []*volume.Request)) (d *dispatcher, workers func() []*fakeWorker) {
	var mu sync.Mutex
	var opened []*fakeWorker
	d = newDispatcher(context.Background(), func(context.Context) (worker, error) {
		w := &fakeWorker{serve: serve}
		mu.Lock()
		defer mu.Unlock()
		opened = append(opened, w)
		return w, nil
	}, lanes, func(format string, args ...any) {})
	return d, func() []*fakeWorker {
		mu.Lock()
		defer mu.Unlock()
		return append([]*fakeWorker(nil), opened...)
	}
}

// waitFor waits until ok, or fails the test after a time that only a hang takes.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *group) queued() (n int) {
	for _, l := range *g.lanes.Load() {
		n += int(l.load.Load())
	}
	return n
}

// What queues while batches are under way forms one next batch per lane.
func TestQueuedCallsFormBatches(t *testing.T) {
	const calls, lanes = 32, 2
	gate := make(chan struct{})
	var batches, largest atomic.Int32
	d, _ := fakeDispatcher(t, lanes, func(reqs []*volume.Request) {
		batches.Add(1)
		for n := largest.Load(); int32(len(reqs)) > n && !largest.CompareAndSwap(n, int32(len(reqs))); n = largest.Load() {
		}
		<-gate
	})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, nil) })
	}
	waitFor(t, "all calls queued", func() bool { return d.fast.queued() == calls })
	close(gate)
	wg.Wait()
	if n := batches.Load(); n > 2*lanes {
		t.Errorf("%d calls took %d batches, want at most %d", calls, n, 2*lanes)
	}
	if n := largest.Load(); n < calls/lanes-1 {
		t.Errorf("the largest batch had %d calls", n)
	}
	if n := d.fast.queued(); n != 0 {
		t.Errorf("%d calls are left", n)
	}
}

// A batch never has more than the worker takes.
func TestBatchIsBounded(t *testing.T) {
	const calls = volume.MaxRequests + 100
	gate := make(chan struct{})
	var served atomic.Int32
	d, _ := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		<-gate
		if len(reqs) > volume.MaxRequests {
			t.Errorf("a batch of %d", len(reqs))
		}
		served.Add(int32(len(reqs)))
	})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, nil) })
	}
	waitFor(t, "all calls queued", func() bool { return d.fast.queued() == calls })
	close(gate)
	wg.Wait()
	if served.Load() != calls {
		t.Errorf("%d of %d calls served", served.Load(), calls)
	}
}

// A leader returns when its own call is served, whatever still queues.
func TestLeaderHandsOver(t *testing.T) {
	steps := make(chan struct{})
	d, _ := fakeDispatcher(t, 1, func([]*volume.Request) { <-steps })
	first := make(chan struct{})
	go func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, nil); close(first) }()
	waitFor(t, "the first leads", func() bool { return d.fast.queued() == 1 })
	second := make(chan struct{})
	go func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, nil); close(second) }()
	waitFor(t, "the second queues", func() bool { return d.fast.queued() == 2 })
	steps <- struct{}{}
	<-first // hangs if the first leads the second batch too
	select {
	case <-second:
		t.Fatal("the second call returned without being served")
	default:
	}
	steps <- struct{}{}
	<-second
}

// A panic fails the batch that it hit and nothing else, and the worker goes.
func TestPanicIsContained(t *testing.T) {
	gate, inside := make(chan struct{}), make(chan struct{}, 8)
	var broken atomic.Bool
	d, workers := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		inside <- struct{}{}
		<-gate
		if len(reqs) > 1 && broken.CompareAndSwap(false, true) {
			panic("planted")
		}
	})
	var logged atomic.Int32
	d.log = func(string, ...any) { logged.Add(1) }
	const calls = 8
	var failed atomic.Int32
	var wg sync.WaitGroup
	for i := range calls {
		if i == 1 {
			<-inside // the first is a batch of its own; the others queue behind it
		}
		wg.Go(func() {
			if err := d.do(&d.fast, volume.Write, nil, 0, 0, nil); errors.Is(err, errPanic) {
				failed.Add(1)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "all calls queued", func() bool { return d.fast.queued() == calls })
	close(gate)
	wg.Wait()
	if n := failed.Load(); n != calls-1 {
		t.Errorf("%d calls failed, want the %d of the second batch", n, calls-1)
	}
	if logged.Load() != 1 {
		t.Errorf("%d lines logged", logged.Load())
	}
	if err := d.do(&d.fast, volume.Read, nil, 0, 0, nil); err != nil {
		t.Errorf("after the panic: %v", err)
	}
	if n := len(workers()); n != 2 {
		t.Errorf("%d workers were opened, want a new one after the panic", n)
	}
	waitFor(t, "the broken worker is closed", func() bool { return workers()[0].closed.Load() })
}

// A worker that cannot be opened fails its batch and is tried again.
func TestWorkerIsOpenedAgain(t *testing.T) {
	planted := errors.New("planted")
	var tries int
	d := newDispatcher(context.Background(), func(context.Context) (worker, error) {
		if tries++; tries == 1 {
			return nil, planted
		}
		return &fakeWorker{serve: func([]*volume.Request) {}}, nil
	}, 1, nil)
	if err := d.do(&d.fast, volume.Read, nil, 0, 0, nil); !errors.Is(err, planted) {
		t.Errorf("got %v", err)
	}
	if err := d.do(&d.fast, volume.Read, nil, 0, 0, nil); err != nil {
		t.Error(err)
	}
}

// Calls that queue behind a batch that does not return get another worker.
func TestStuckLaneIsRelieved(t *testing.T) {
	stuck := make(chan struct{})
	d, _ := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		if reqs[0].Off == 1 {
			<-stuck
		}
	})
	d.patience = 0
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.do(&d.fast, volume.Read, nil, 1, 0, nil) })
	waitFor(t, "the first is stuck", func() bool { return (*d.fast.lanes.Load())[0].began.Load() != 0 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, nil) })
		}
		wg.Wait()
	}()
	waitFor(t, "calls queue", func() bool { return d.fast.queued() == 11 })
	for i := 0; ; i++ {
		d.relieve(&d.fast)
		select {
		case <-done:
		case <-time.After(time.Millisecond):
			if i == 10000 {
				t.Fatal("calls wait behind the stuck batch")
			}
			continue
		}
		break
	}
	if l := (*d.fast.lanes.Load())[0]; !l.stuck.Load() || l.load.Load() != 1 {
		t.Errorf("stuck lane: stuck %v, load %d", l.stuck.Load(), l.load.Load())
	}
	// A lane that is idle by then is taken before another is made.
	for range 3 {
		late := make(chan struct{})
		go func() {
			defer close(late)
			(*d.fast.lanes.Load())[0].do(&call{wake: make(chan wake, 1)})
		}()
		waitFor(t, "a call queues behind the stuck batch", func() bool { return (*d.fast.lanes.Load())[0].queued() })
		d.relieve(&d.fast)
		select {
		case <-late:
		case <-time.After(10 * time.Second):
			t.Fatal("a call waits behind the stuck batch beside an idle lane")
		}
	}
	if n := len(*d.fast.lanes.Load()); n != 2 {
		t.Errorf("%d lanes, want the stuck one and the one that relieves it", n)
	}
	close(stuck)
	wg.Wait()
	if (*d.fast.lanes.Load())[0].stuck.Load() {
		t.Error("lane counts as stuck although its batch ended")
	}
}

// Everything at once: each call must get its own result, exactly once.
func TestDispatchStress(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	var rounds atomic.Uint64
	d, _ := fakeDispatcher(t, 2, func(reqs []*volume.Request) {
		for _, r := range reqs {
			binary.LittleEndian.PutUint64(r.Data, uint64(r.Off)*3)
			r.N++
			r.Err = nil
		}
		switch rounds.Add(1) % 64 {
		case 7:
			runtime.Gosched()
		case 30:
			time.Sleep(100 * time.Microsecond)
		case 50:
			panic("planted")
		}
	})
	d.patience = time.Nanosecond
	post := newPoster(d)
	stop := make(chan struct{})
	var chaos sync.WaitGroup
	chaos.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				d.relieve(&d.fast)
				d.flying.look()
				runtime.Gosched()
			}
		}
	})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(g)))
			var buf [8]byte
			for range 2000 {
				off := rng.Int64N(1 << 40)
				clear(buf[:])
				var err error
				if off%2 == 0 {
					err = d.do(&d.fast, volume.Read, nil, off, 0, buf[:])
				} else if post.do(&d.fast, off, buf[:]) != 0 {
					err = errPanic
				}
				if got := binary.LittleEndian.Uint64(buf[:]); got != uint64(off)*3 || err != nil && !errors.Is(err, errPanic) {
					t.Errorf("offset %d: got %d, %v", off, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	chaos.Wait()
	if n, _ := d.flying.look(); n != 0 || d.fast.queued() != 0 {
		t.Errorf("%d in flight and %d queued after all returned", n, d.fast.queued())
	}
	for _, l := range *d.fast.lanes.Load() {
		if l.head.Load() != nil || l.rest != nil {
			t.Error("a lane is not idle")
		}
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}

func TestCounters(t *testing.T) {
	d, _ := fakeDispatcher(t, 1, func(reqs []*volume.Request) {
		if reqs[0].Off == 512 {
			reqs[0].Err = errPanic
		}
	})
	_ = d.do(&d.fast, volume.Read, nil, 8192, 0, make([]byte, 4096))
	_ = d.do(&d.fast, volume.Read, nil, 512, 0, make([]byte, 1000))
	_ = d.do(&d.slow, volume.Flush, nil, 0, 0, nil)
	ops, requests, batches, _ := d.sum()
	if requests != 3 || batches != 3 {
		t.Errorf("%d requests, %d batches", requests, batches)
	}
	r := ops["read"]
	if r.Requests != 2 || r.Bytes != 5096 || r.Errors != 1 {
		t.Errorf("read: %+v", r)
	}
	if fmt.Sprint(r.Sizes) != "map[1024:map[512:1] 4096:map[8192:1]]" {
		t.Errorf("sizes: %v", r.Sizes)
	}
}

func TestDispatchAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	d, _ := fakeDispatcher(t, 2, func([]*volume.Request) {})
	buf := make([]byte, 4096)
	_ = d.do(&d.fast, volume.Read, nil, 0, 0, buf)
	if n := testing.AllocsPerRun(1000, func() { _ = d.do(&d.fast, volume.Read, nil, 0, 0, buf) }); n >= 1 {
		t.Errorf("%v allocations per request", n)
	}
}

// BenchmarkDispatch is the cost of this layer alone: one request at a time, and
// 32 that are combined.
func BenchmarkDispatch(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			d, _ := fakeDispatcher(b, 0, func([]*volume.Request) {})
			b.ReportAllocs()
			b.SetParallelism(max(1, depth/runtime.GOMAXPROCS(0)))
			if depth == 1 {
				buf := make([]byte, 4096)
				for b.Loop() {
					_ = d.do(&d.fast, volume.Read, nil, 0, 0, buf)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 4096)
				for pb.Next() {
					_ = d.do(&d.fast, volume.Read, nil, 0, 0, buf)
				}
			})
			_, requests, batches, _ := d.sum()
			b.ReportMetric(float64(requests)/float64(batches), "requests/batch")
		})
	}
}
