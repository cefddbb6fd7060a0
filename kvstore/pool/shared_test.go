package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

func shareLease(t testing.TB, p *Pool, opt LeaseOptions) *Lease {
	t.Helper()
	if opt.TTL == 0 {
		opt.TTL = testTTL
	}
	l, err := p.AcquireShared(t.Context(), "v", opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestReadersShare: readers of several machines at once, no writer beside them, no
// reader beside a writer.
func TestReadersShare(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 2)
	p, _ := host(t, st)
	q, _ := host(t, st)
	w, _ := host(t, st)
	alive := LeaseOptions{TTL: aliveTTL}
	a, b := shareLease(t, p, alive), shareLease(t, q, alive)
	for _, l := range []*Lease{a, b} {
		if err := l.Wait(ctx); err != nil || l.Generation() != 0 {
			t.Fatal(l.Generation(), err)
		}
	}
	writer, readers, err := w.Holders(ctx, "v")
	if err != nil || writer != nil || len(readers) != 2 || readers[0].ID != a.ID() || readers[1].ID != b.ID() ||
		readers[0].SameHost || readers[0].PID != os.Getpid() || readers[0].TTL != aliveTTL {
		t.Fatal(writer, readers, err)
	}
	if _, held, err := w.Holder(ctx, "v"); held || err != nil {
		t.Error("readers are no writer", err)
	}
	told := ""
	for _, wait := range []time.Duration{-1, 0, 2 * testTTL} {
		_, err = w.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: wait, Notify: func(m string) { told = m }})
		wantErr(t, err, ErrHeld)
		if !strings.Contains(err.Error(), "open for reading on "+readers[0].Host) {
			t.Errorf("it does not name the readers: %v", err)
		}
	}
	if !strings.Contains(told, "open for reading") {
		t.Error("notified:", told)
	}
	if err := a.Release(ctx); err != nil || a.Fence().Passes() {
		t.Fatal("a share passes after its release", err)
	}
	_, err = w.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
	wantErr(t, err, ErrHeld)
	if err := b.Release(ctx); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, w, LeaseOptions{Wait: -1})
	if l.Generation() != 1 {
		t.Error("generation", l.Generation())
	}
	_, err = p.AcquireShared(ctx, "v", LeaseOptions{TTL: testTTL})
	wantErr(t, err, ErrHeld)
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	c := shareLease(t, p, LeaseOptions{})
	if c.Generation() != 1 {
		t.Error("a reader's generation", c.Generation())
	}
	if err := errors.Join(c.Release(ctx), c.Release(ctx)); err != nil {
		t.Fatal(err)
	}
}

// TestDeadReader: a writer waits for a reader that is gone as long as its TTL, and
// not at all if that was on the same machine.
func TestDeadReader(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	opt := Options{RuntimeDir: t.TempDir()}
	p := open(t, newRig(st), opt)
	shareLease(t, p, LeaseOptions{TTL: time.Hour})
	p.Close() // as a crash: its entry stays
	q, _ := host(t, st)
	_, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
	wantErr(t, err, ErrHeld)
	l := acquire(t, open(t, newRig(st), opt), LeaseOptions{Wait: -1})
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	p, _ = host(t, st)
	dead := shareLease(t, p, LeaseOptions{})
	p.Close()
	if dead.Fence().Passes() {
		t.Error("a share passes after its pool was closed")
	}
	began := kvstore.Boottime()
	l = acquire(t, q, LeaseOptions{})
	if waited := time.Duration(kvstore.Boottime() - began); waited < testTTL {
		t.Errorf("taken after %v, before the reader's TTL", waited)
	}
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{opt.RuntimeDir} {
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 1 { // host-id
			t.Error("left in the runtime directory:", files, err)
		}
	}
}

// TestLateReader: a reader that could not renew trusts nothing until it is entered
// again, and reads for ever no more if somebody may have written.
func TestLateReader(t *testing.T) {
	ctx := t.Context()
	for _, what := range []string{"nobody came", "its entry was dropped", "somebody wrote"} {
		st := newVolume(t, 1)
		p, r := host(t, st)
		q, _ := host(t, st)
		late, other := shareLease(t, p, LeaseOptions{}), shareLease(t, q, LeaseOptions{})
		lift := outage(r)
		eventually(t, "the fence closes by itself", func() bool { return !late.Fence().Passes() })
		switch what {
		case "its entry was dropped":
			eventually(t, "the other reader drops it", func() bool {
				_, readers, err := q.Holders(ctx, "v")
				return err == nil && len(readers) == 1 && readers[0].ID == other.ID()
			})
		case "somebody wrote":
			if err := other.Release(ctx); err != nil {
				t.Fatal(err)
			}
			w := acquire(t, q, LeaseOptions{})
			if late.Fence().Passes() {
				t.Fatal("a reader reads beside a writer")
			}
			if err := w.Release(ctx); err != nil {
				t.Fatal(err)
			}
		}
		lift()
		err := late.Wait(ctx)
		if what == "somebody wrote" {
			wantErr(t, err, ErrHeld)
			if late.Fence().Passes() {
				t.Error("it passes for good")
			}
			continue
		}
		if err != nil {
			t.Fatal(what, err)
		}
		if err := errors.Join(late.Release(ctx), other.Release(ctx)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpgrade: who reads may go on to write if nobody else reads.
func TestUpgrade(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	q, _ := host(t, st)
	alive := LeaseOptions{TTL: aliveTTL}
	mine, other := shareLease(t, p, alive), shareLease(t, q, alive)
	_, err := p.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Upgrade: mine})
	wantErr(t, err, ErrHeld)
	if err := mine.Wait(ctx); err != nil {
		t.Fatal("an upgrade that was refused ends the share:", err)
	}
	if err := other.Release(ctx); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, p, LeaseOptions{Wait: -1, Upgrade: mine})
	if l.Generation() != 1 {
		t.Error("generation", l.Generation())
	}
	mine.Abandon()
	if _, held, err := q.Holder(ctx, "v"); !held || err != nil {
		t.Error("not held", err)
	}
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestLostSharedRecord: the record is lost while it is shared. The reader enters
// itself again, and nobody writes before it can have stopped to read.
func TestLostSharedRecord(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	q, _ := host(t, st)
	l := shareLease(t, p, LeaseOptions{})
	v, err := p.Volume(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	lose := func() {
		if err := st.Control().Delete(ctx, 0, p.leaseName(v.UUID)); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1, Alone: true})
	wantErr(t, err, ErrHeld)
	eventually(t, "it enters itself again", func() bool {
		_, readers, err := q.Holders(ctx, "v")
		return err == nil && len(readers) == 1 && readers[0].ID == l.ID()
	})
	lift := outage(r)
	lose()
	w := acquire(t, q, LeaseOptions{})
	if l.Fence().Passes() {
		t.Error("a reader reads beside a writer")
	}
	lose()
	lift()
	wantErr(t, l.Wait(ctx), ErrHeld) // the volume's record tells it
	_ = w.Release(ctx)
}

// TestBreakReaders: readers that live lose their shares by force only.
func TestBreakReaders(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	q, _ := host(t, st)
	l := shareLease(t, p, LeaseOptions{TTL: aliveTTL})
	wantErr(t, q.Break(ctx, "v", false), ErrHeld)
	if err := l.Wait(ctx); err != nil {
		t.Fatal("a break that was refused:", err)
	}
	if err := q.Break(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if l.Fence().Passes() {
		t.Error("the break has ended and a reader may still read")
	}
	wantErr(t, l.Wait(ctx), ErrHeld)
	if writer, readers, err := q.Holders(ctx, "v"); writer != nil || readers != nil || err != nil {
		t.Error("it is held after the break:", writer, readers, err)
	}
}

// TestTooManyReaders: the record is bounded.
func TestTooManyReaders(t *testing.T) {
	st := newVolume(t, 1)
	p, _ := host(t, st)
	var all []*Lease
	for range maxReaders {
		all = append(all, shareLease(t, p, LeaseOptions{TTL: time.Hour}))
	}
	_, err := p.AcquireShared(t.Context(), "v", LeaseOptions{TTL: time.Hour})
	wantErr(t, err, ErrHeld)
	for _, l := range all {
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadersOrOneWriter: machines that read and machines that write fight for one
// volume through outages. Whenever a writer's fence passes, all others are closed.
func TestReadersOrOneWriter(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 1.5 s")
	}
	st := newVolume(t, 1)
	const machines = 6 // the even ones write
	var (
		wg          sync.WaitGroup
		read, wrote atomic.Int32
		fences      [machines]atomic.Pointer[kvstore.Fence]
	)
	ctx, stop := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer stop()
	for i := range machines {
		p, r := host(t, st)
		writes := i%2 == 0
		wg.Go(func() {
			for ctx.Err() == nil {
				opt := LeaseOptions{TTL: testTTL, Wait: time.Second}
				take, count := p.AcquireShared, &read
				if writes {
					take, count = p.Acquire, &wrote
				}
				l, err := take(ctx, "v", opt)
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				count.Add(1)
				fences[i].Store(l.Fence())
				for j := range fences {
					// Ours is asked last: see TestOneWriterAtATime.
					other := fences[j].Load()
					if j != i && (writes || j%2 == 0) && other != nil && other.Passes() && l.Fence().Passes() {
						t.Errorf("machines %d and %d at once", i, j)
					}
				}
				if rand.N(2) == 0 { // a partition instead of a release
					lift := outage(r)
					for l.Fence().Passes() {
						time.Sleep(time.Millisecond)
					}
					lift()
				}
				for l.Release(context.WithoutCancel(ctx)) != nil {
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d turns of readers, %d of writers", read.Load(), wrote.Load())
	if read.Load()+wrote.Load() == 0 {
		t.Error("nobody had a turn")
	}
}

// TestSharedRecord: what an older version must not take for free, and what no
// version writes.
func TestSharedRecord(t *testing.T) {
	p := &Pool{opt: Options{Name: DefaultName}}
	name := p.leaseName(uuidFrom(1))
	r := leaseRecord{volume: uuidFrom(1), readers: []reader{{id: uuidFrom(2), ttl: time.Second, beat: 3, hostname: "n"}}}
	read := func(incompat uint64, body []byte) error {
		h, body, err := unseal(name, kindLease, seal(name, head{kind: kindLease, incompat: incompat}, body))
		if err == nil {
			_, err = decodeLease(h, body)
		}
		return err
	}
	if err := read(r.incompat(), r.encode()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, read(0, r.encode()), kvstore.ErrCorrupt)
	wantErr(t, read(featShared, (&leaseRecord{held: true}).encode()), kvstore.ErrCorrupt)
	wantErr(t, read(featShared, (&leaseRecord{}).encode()), kvstore.ErrCorrupt)
	wantErr(t, read(featShared<<1, r.encode()), ErrFormat)
	for n := range r.encode() {
		wantErr(t, read(featShared, r.encode()[:n]), kvstore.ErrCorrupt)
	}
	sentinel := p.sentinelName()
	_, _, err := unseal(sentinel, kindSentinel, seal(sentinel, head{kind: kindSentinel, incompat: featShared}, nil))
	wantErr(t, err, ErrFormat)
}
