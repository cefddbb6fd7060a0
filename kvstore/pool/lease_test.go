package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// testTTL is short, and long enough for a busy machine: what the tests rely on
// is never that something happens in time, only that it happens, or that the
// rules hold whenever it does.
const testTTL = 120 * time.Millisecond

// aliveTTL is for a holder that others must see alive: it has to renew in time, also on
// a machine that does not let it run for a second. The TTL that counts is the holder's:
// who asks may have testTTL.
const aliveTTL = 2 * time.Second

// host opens a pool as a daemon of another machine (its own runtime directory), on
// which somebody sets the clock all the time.
func host(t testing.TB, st *mem.Store) (*Pool, *rig) {
	r := newRig(st)
	return open(t, r, Options{RuntimeDir: t.TempDir(), Now: jumping}), r
}

// jumping is a time of day that is wrong by up to a week, in either direction.
func jumping() time.Time {
	const week = 7 * 24 * time.Hour
	return time.Now().Add(rand.N(2*week) - week)
}

func acquire(t testing.TB, p *Pool, opt LeaseOptions) *Lease {
	t.Helper()
	if opt.TTL == 0 {
		opt.TTL = testTTL
	}
	l, err := p.Acquire(t.Context(), "v", opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// eventually polls; the bound is only there so that a failure ends.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 20000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("never: " + what)
}

// outage fails every control call until it is lifted.
func outage(r *rig) (lift func()) {
	r.hook(func(op, name string, server int) error {
		return &kvstore.OpError{Op: op, Name: name, Server: r.addresses[server], Err: kvstore.ErrUnreachable}
	}, nil)
	return func() { r.hook(nil, nil) }
}

func newVolume(t testing.TB, servers int) *mem.Store {
	st := mem.New(mem.Config{Servers: servers})
	p, _ := host(t, st)
	makeReady(t, p, "v")
	return st
}

func TestLifeOfALease(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 2)
	p, _ := host(t, st)
	if _, ok, err := p.Holder(ctx, "v"); ok || err != nil {
		t.Fatal("a new volume is held", err)
	}
	l := acquire(t, p, LeaseOptions{TTL: aliveTTL})
	if l.Generation() != 1 {
		t.Fatal("generation", l.Generation())
	}
	q, _ := host(t, st)
	_, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL}) // sees it renewed
	wantErr(t, err, ErrHeld)
	_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1, Alone: true})
	wantErr(t, err, ErrHeld)
	told := ""
	_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: 2 * testTTL, Notify: func(m string) { told += m }})
	wantErr(t, err, ErrHeld)
	h, ok, err := q.Holder(ctx, "v")
	if err != nil || !ok || h.ID != l.ID() || h.SameHost || h.Generation != 1 || h.Host == "" || h.PID == 0 {
		t.Fatal(h, ok, err)
	}
	if strings.Count(told, "waiting") != 1 || !strings.Contains(told, h.Host) {
		t.Error("notified:", told)
	}
	if err := l.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(ctx); err != nil || l.Fence().Passes() {
		t.Fatal("fence passes after release", err)
	}
	if _, ok, err := q.Holder(ctx, "v"); ok || err != nil {
		t.Fatal("held after release", err)
	}
	m := acquire(t, q, LeaseOptions{Wait: -1})
	if m.Generation() != 2 || m.ID() == l.ID() {
		t.Fatal("generation", m.Generation())
	}
	if err := errors.Join(m.Release(ctx), m.Release(ctx)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, m.Wait(ctx), kvstore.ErrFenced)
	if v, err := q.Volume(ctx, "v"); err != nil || v.Generation != 2 {
		t.Fatal(v, err)
	}
}

func TestDeadMachineIsSucceededAfterItsTTL(t *testing.T) {
	st := newVolume(t, 1)
	p, _ := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	p.Close() // as a crash: the record stays
	if l.Fence().Passes() {
		t.Fatal("fence passes after close")
	}
	wantErr(t, l.Wait(t.Context()), kvstore.ErrClosed)
	q, _ := host(t, st)
	began := kvstore.Boottime()
	m := acquire(t, q, LeaseOptions{})
	if waited := time.Duration(kvstore.Boottime() - began); waited < testTTL {
		t.Errorf("taken over after %v, before the TTL", waited)
	}
	if m.Generation() != 2 {
		t.Error("generation", m.Generation())
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestSameMachineSucceedsAtOnce(t *testing.T) {
	st := newVolume(t, 1)
	opt := Options{RuntimeDir: t.TempDir()}
	for _, resume := range []bool{false, true} {
		p := open(t, newRig(st), opt)
		l := acquire(t, p, LeaseOptions{TTL: time.Hour, Alone: true})
		p.Close()
		q := open(t, newRig(st), opt)
		_, err := q.Acquire(t.Context(), "v", LeaseOptions{TTL: time.Hour, Wait: -1}) // without proof
		wantErr(t, err, ErrHeld)
		m := acquire(t, q, LeaseOptions{TTL: time.Hour, Alone: true, Resume: resume, Wait: -1})
		if same := m.ID() == l.ID() && m.Generation() == l.Generation(); same != resume {
			t.Errorf("resume %v: generation %d after %d", resume, m.Generation(), l.Generation())
		}
		if !resume && m.Generation() != l.Generation()+1 {
			t.Errorf("generation %d after %d", m.Generation(), l.Generation())
		}
		if h, _, _ := q.Holder(t.Context(), "v"); !h.SameHost {
			t.Error("not this machine")
		}
		if err := m.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody resumes what another machine held meanwhile.
func TestResumeAfterAnotherHolder(t *testing.T) {
	st := newVolume(t, 1)
	opt := Options{RuntimeDir: t.TempDir()}
	p := open(t, newRig(st), opt)
	l := acquire(t, p, LeaseOptions{})
	p.Close()
	q, _ := host(t, st)
	if err := acquire(t, q, LeaseOptions{}).Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := acquire(t, open(t, newRig(st), opt), LeaseOptions{Alone: true, Resume: true})
	if m.ID() == l.ID() || m.Generation() != 3 {
		t.Fatal("resumed over another holder, generation", m.Generation())
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestRebootOnAPrivateStore(t *testing.T) {
	st := newVolume(t, 1)
	r := newRig(st)
	r.private = true
	p := open(t, r, Options{RuntimeDir: t.TempDir()})
	l := acquire(t, p, LeaseOptions{TTL: time.Hour})
	p.Close()
	q := open(t, r, Options{RuntimeDir: t.TempDir()})
	_, err := q.Acquire(t.Context(), "v", LeaseOptions{TTL: time.Hour, Wait: -1}) // another container may still run
	wantErr(t, err, ErrHeld)
	q.host.boot[0]++ // as after a reboot
	m := acquire(t, q, LeaseOptions{TTL: time.Hour, Wait: -1, Resume: true})
	if m.Generation() != l.Generation()+1 {
		t.Fatal(m.Generation())
	}
	if err := m.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestOutageClosesTheFenceUntilRenewed(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	lift := outage(r)
	eventually(t, "the fence closes by itself", func() bool { return !l.Fence().Passes() })
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	wantErr(t, l.Wait(short), kvstore.ErrTimeout)
	cancel()
	waited := make(chan error, 1)
	go func() { waited <- l.Wait(ctx) }()
	lift()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	h, ok, err := p.Holder(ctx, "v")
	if err != nil || !ok || h.ID != l.ID() || h.Generation != l.Generation() {
		t.Fatal("another holder after an outage", h, ok, err)
	}
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestTakenByAnotherDuringAnOutage(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	lift := outage(r)
	q, _ := host(t, st)
	m := acquire(t, q, LeaseOptions{})
	if l.Fence().Passes() {
		t.Fatal("two holders may write")
	}
	waited := make(chan error, 1)
	go func() { waited <- l.Wait(ctx) }()
	lift()
	wantErr(t, <-waited, ErrHeld)
	if l.Fence().Passes() || l.Release(ctx) != nil {
		t.Fatal("the loser's fence passes, or its release fails")
	}
	if h, ok, err := p.Holder(ctx, "v"); err != nil || !ok || h.ID != m.ID() {
		t.Fatal("the loser's release took it from the winner", h, ok, err)
	}
	if err := m.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFailedReleaseKeepsTheLease(t *testing.T) {
	ctx := t.Context()
	for _, done := range []bool{false, true} { // done: freed, but the answer is lost
		st := newVolume(t, 1)
		p, r := host(t, st)
		l := acquire(t, p, LeaseOptions{})
		var broken atomic.Bool
		broken.Store(true)
		fail := func(op, _ string, _ int) error {
			if op == "swap" && broken.Load() {
				return kvstore.ErrUnreachable
			}
			return nil
		}
		if done {
			r.hook(nil, fail)
		} else {
			r.hook(fail, nil)
		}
		wantErr(t, l.Release(ctx), kvstore.ErrUnreachable)
		broken.Store(false)
		if err := l.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		if h, ok, err := p.Holder(ctx, "v"); err != nil || !ok || h.ID != l.ID() {
			t.Fatal("not held again", ok, err)
		}
		if err := l.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadersAfterLostRelease: a release whose answer was lost, and a reader that
// came then: the lease is not taken back from the reader.
func TestReadersAfterLostRelease(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	var broken atomic.Bool
	broken.Store(true)
	var reader *Lease
	r.hook(nil, func(op, _ string, _ int) error {
		if op != "swap" || !broken.CompareAndSwap(true, false) {
			return nil
		}
		q, _ := host(t, st)
		var err error
		if reader, err = q.AcquireShared(ctx, "v", LeaseOptions{}); err != nil {
			t.Error(err)
		}
		return kvstore.ErrUnreachable
	})
	wantErr(t, l.Release(ctx), kvstore.ErrUnreachable)
	wantErr(t, l.Wait(ctx), ErrHeld)
	if !reader.Fence().Passes() {
		t.Error("the reader's lease does not hold")
	}
	if err := reader.Release(ctx); err != nil {
		t.Error(err)
	}
}

// A crash or a lost answer anywhere in Acquire never leaves the volume stuck nor
// lets the generation repeat for two holders that could write.
func TestCrashInAcquire(t *testing.T) {
	ctx := t.Context()
	for _, done := range []bool{false, true} {
		for n := 1; ; n++ {
			st := newVolume(t, 2)
			run := t.TempDir()
			r := newRig(st)
			p := open(t, r, Options{RuntimeDir: run})
			crashAt(r, n, done)
			l, err := p.Acquire(ctx, "v", LeaseOptions{TTL: time.Hour, Alone: true})
			finished := err == nil
			p.Close()
			r.hook(nil, nil)
			m := acquire(t, open(t, newRig(st), Options{RuntimeDir: run}), LeaseOptions{TTL: time.Hour, Alone: true, Wait: -1})
			if finished && m.Generation() <= l.Generation() {
				t.Fatalf("generation %d after %d", m.Generation(), l.Generation())
			}
			if err := m.Release(ctx); err != nil {
				t.Fatal(err)
			}
			if finished {
				break
			}
			if n > 200 {
				t.Fatal("it never ends")
			}
		}
	}
}

// Many machines fight for one volume through outages: whenever a fence passes,
// all others are closed. What is tested is the rule, not the speed.
func TestOneWriterAtATime(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 1.5 s")
	}
	st := newVolume(t, 1)
	const machines = 5
	var (
		wg     sync.WaitGroup
		turns  atomic.Int32
		last   atomic.Uint64 // generation
		fences [machines]atomic.Pointer[kvstore.Fence]
	)
	ctx, stop := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer stop()
	for i := range machines {
		p, r := host(t, st)
		wg.Go(func() {
			for ctx.Err() == nil {
				l, err := p.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: time.Second})
				if err != nil {
					continue
				}
				turns.Add(1)
				if g := l.Generation(); last.Swap(g) >= g {
					t.Errorf("generation %d after a later one", g)
				}
				fences[i].Store(l.Fence())
				for j := range fences {
					// Ours is asked last: if it passes then, it passed also at the time
					// when the other one was asked.
					if other := fences[j].Load(); j != i && other != nil && other.Passes() && l.Fence().Passes() {
						t.Errorf("machines %d and %d may both write", i, j)
					}
				}
				if i%2 == 0 { // a partition instead of a release
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
	if turns.Load() < 2 {
		t.Errorf("%d turns", turns.Load())
	}
}

func TestAcquireRefuses(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	_, err := p.Acquire(ctx, "none", LeaseOptions{})
	wantErr(t, err, ErrNoVolume)
	_, err = p.Acquire(ctx, "v", LeaseOptions{TTL: time.Nanosecond})
	wantErr(t, err, kvstore.ErrInvalid)
	p.Close()
	_, err = p.Acquire(ctx, "v", LeaseOptions{})
	wantErr(t, err, kvstore.ErrClosed)
	q, _ := host(t, st)
	if _, ok, err := q.Holder(ctx, "v"); ok || err != nil {
		t.Fatal("a refused acquisition holds it", err)
	}
}

// The fence is closed before the lease can be seen as free.
func TestFenceClosesBeforeTheRelease(t *testing.T) {
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{TTL: time.Hour})
	passed := false
	r.hook(func(op, _ string, _ int) error {
		passed = passed || op == "swap" && l.Fence().Passes()
		return nil
	}, nil)
	if err := l.Release(t.Context()); err != nil || passed {
		t.Fatal("writes pass while the lease is given up", err)
	}
}
