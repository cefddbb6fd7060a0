package cache_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
)

// run reads count neighbours in one batch, as a request of that size does.
func (r *rig) run(ch kvstore.Channel, first, count uint64, reader uint32) []*kvstore.Op {
	var ops []*kvstore.Op
	for n := first; n < first+count; n++ {
		op := readOp(n)
		op.Reader = reader
		ops = append(ops, op)
	}
	ch.Do(ctx, ops)
	return ops
}

func (r *rig) check(ops []*kvstore.Op) {
	r.t.Helper()
	for _, op := range ops {
		if v, whole := version(op.Data); op.Err != nil || v != op.Key.Number || !whole {
			r.t.Errorf("block %d: version %d (whole: %v), %v", op.Key.Number, v, whole, op.Err)
		}
	}
}

// settled waits until what was asked for ahead was read.
func (r *rig) settled() cache.Stats {
	last := r.cache.Stats()
	for quiet := 0; quiet < 20; {
		time.Sleep(5 * time.Millisecond)
		now := r.cache.Stats()
		if quiet++; now != last {
			quiet, last = 0, now
		}
	}
	return last
}

// Who reads in sequence is served from memory after a few requests, through
// whichever channel the requests come; what is read ahead is used.
func TestReadAhead(t *testing.T) {
	r := newRig(t, 3, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20})
	const span = 2048
	r.fill(span)
	channels := []kvstore.Channel{r.channel(), r.channel()}
	for at := uint64(0); at < span; at += 32 {
		r.check(r.run(channels[at/32%2], at, 32, 5))
	}
	st := r.settled()
	if st.ReadAhead.Read < span/2 || st.ReadAhead.Used < span/2 {
		t.Errorf("of %d blocks in sequence %d were read ahead and %d of them used", span, st.ReadAhead.Read, st.ReadAhead.Used)
	}
	if st.Hits < span/2 {
		t.Errorf("%d hits of %d", st.Hits, span)
	}
}

// Random reads have nothing read ahead, also of several blocks, and neither has a
// reader of the neighbours that another reader read.
func TestNoReadAhead(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20})
	const span = 4096
	r.fill(span)
	at := uint64(0)
	for range 500 {
		at = (at*2862933555777941757 + 3037000493) % span
		r.check(r.run(r.ch, at&^3, 4, 1))
	}
	for reader := range uint32(16) {
		r.check(r.run(r.ch, 3000+uint64(reader)*8, 8, 100+reader))
	}
	if st := r.settled(); st.ReadAhead.Read > 200 {
		t.Errorf("%d blocks were read ahead of random reads", st.ReadAhead.Read)
	}
}

// A stream that ends makes room: random reads take its mark, and what was queued
// for it is not read.
func TestReadAheadIsCancelled(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 16 << 20, ReadAhead: 4 << 20})
	const span = 8192
	r.fill(span)
	shut := make(chan struct{})
	var held atomic.Uint64
	r.under.set(func(ops []*kvstore.Op) {
		if ops[0].Reader == 0 { // what is read ahead
			held.Add(uint64(len(ops)))
			<-shut
		}
	}, nil)
	for at := uint64(0); at < 24*32; at += 32 {
		r.check(r.run(r.ch, at, 32, 1))
	}
	at := uint64(1)
	for range 200 { // random reads of the same reader
		at = (at*2862933555777941757 + 3037000493) % span
		r.check(r.run(r.ch, at, 1, 1))
	}
	// What the fetchers have in their hands is read, nothing else.
	want := held.Load()
	close(shut)
	if st := r.settled(); want == 0 || st.ReadAhead.Read > want {
		t.Errorf("%d blocks were read ahead of a stream that had ended, %d when it did", st.ReadAhead.Read, want)
	}
}

// A server that goes silent during read-ahead holds up neither reads of other
// servers, nor those of its own that it answers, nor the end.
func TestSilentServerDuringReadAhead(t *testing.T) {
	r := newRig(t, 3, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20})
	const span = 2048
	r.fill(span)
	silent, begun := make(chan struct{}), make(chan struct{}, 100)
	r.under.set(func(ops []*kvstore.Op) {
		if ops[0].Reader == 0 {
			begun <- struct{}{}
			<-silent // as if the connection were dead
		}
	}, nil)
	r.check(r.run(r.ch, 0, 32, 1))
	r.check(r.run(r.ch, 32, 32, 1))
	r.check(r.run(r.ch, 64, 32, 1))
	select {
	case <-begun:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is read ahead")
	}
	done := in(func() {
		for at := uint64(96); at < span; at += 32 {
			r.check(r.run(r.ch, at, 32, 1))
		}
	})
	within(t, done, "reading what is being read ahead from a silent server")
	close(silent)
}

// What could not be read ahead is read by who waits for it, and is cached then.
func TestFailedReadAhead(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20})
	const span = 1024
	r.fill(span)
	r.under.fails.Store(true)
	var waited atomic.Int64
	r.under.set(func(ops []*kvstore.Op) {
		if ops[0].Reader == 0 {
			waited.Add(int64(len(ops)))
			time.Sleep(time.Millisecond) // the reader comes meanwhile
		}
	}, nil)
	for at := uint64(0); at < span; at += 32 {
		r.check(r.run(r.ch, at, 32, 1))
	}
	r.settled()
	missing := 0
	for n := range uint64(span) {
		if !r.cached(n) {
			missing++
		}
	}
	// None; but who waits for too long, on a machine that is held up, leaves the place to
	// who reads ahead. Without a place for who waited, it was 128 and more.
	if waited.Load() < span/2 || missing > span/16 {
		t.Errorf("%d of %d blocks that were read are not cached; %d were to be read ahead", missing, span, waited.Load())
	}
}

// A panic below who reads ahead ends nothing but that: what it was to read is read by
// who waits for it, and can be cached.
func TestPanicDuringReadAhead(t *testing.T) {
	for name, plant := range map[string]func(u *under){
		"opening": func(u *under) { u.opening.Store(true) },
		"reading": func(u *under) {
			u.set(func(ops []*kvstore.Op) {
				if ops[0].Reader == 0 {
					panic("planted")
				}
			}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var panics atomic.Int64
			r := newRig(t, 2, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20, Log: func(format string, args ...any) {
				if strings.HasPrefix(format, "panic while") {
					panics.Add(1)
				}
			}})
			const span = 1024
			r.fill(span)
			plant(r.under)
			for at := uint64(0); at < span; at += 32 {
				r.check(r.run(r.ch, at, 32, 1))
			}
			// A block whose place is never given up cannot be cached.
			for n, end := uint64(0), time.Now().Add(30*time.Second); n < span; n++ {
				for r.holds(n, n); !r.cached(n); {
					if time.Now().After(end) {
						t.Fatalf("block %d is never cached", n)
					}
				}
			}
			if panics.Load() == 0 {
				t.Error("nothing panicked: not much of a test")
			}
		})
	}
}

// Nor does the end wait for answers that do not come.
func TestCloseDuringReadAhead(t *testing.T) {
	r := newRig(t, 1, cache.Config{Size: 16 << 20, ReadAhead: 1 << 20})
	r.fill(1024)
	r.under.silent.Store(true)
	for at := uint64(0); at < 512; at += 32 {
		r.check(r.run(r.ch, at, 32, 1))
	}
	within(t, in(func() {
		if err := r.cache.Close(); err != nil {
			t.Error(err)
		}
	}), "closing")
}
