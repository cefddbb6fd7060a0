package pool

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// past waits until what was valid for a TTL, when this was called, is so no more.
func past(t testing.TB, ttl time.Duration) {
	t.Helper()
	until := kvstore.Boottime() + int64(ttl)
	eventually(t, "time passes", func() bool { return kvstore.Boottime() > until })
}

// beat is what the entry of a share says.
func beat(t testing.TB, p *Pool, share *Lease) uint64 {
	t.Helper()
	r, _, err := p.readLease(t.Context(), share.volume.UUID)
	if err != nil || r == nil {
		t.Fatal("no record of the lease", err)
	}
	i := r.reader(share.ID())
	if i < 0 {
		t.Fatal("the share has no entry")
	}
	return r.readers[i].beat
}

// TestReadsDuringUpgrade: while a share is being upgraded, for however long, what is
// read is good. An upgrade that was given up leaves the share as it was: nobody
// writes meanwhile, and it can be tried again.
func TestReadsDuringUpgrade(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	q, _ := host(t, st)
	share := shareLease(t, p, LeaseOptions{})
	for try := range 3 {
		l := acquire(t, p, LeaseOptions{TTL: time.Hour, Wait: -1, Upgrade: share})
		if l.ttl != share.ttl {
			t.Fatalf("a share of %v is upgraded to a lease of %v", share.ttl, l.ttl)
		}
		past(t, 2*testTTL)
		if err := share.Wait(ctx); err != nil {
			t.Fatalf("try %d: during the upgrade: %v", try, err)
		}
		if _, held, err := q.Holder(ctx, "v"); !held || err != nil {
			t.Fatal("not held", err)
		}
		l.Abandon()
		_, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
		wantErr(t, err, ErrHeld)
		if err := share.Wait(ctx); err != nil {
			t.Fatalf("try %d: after the upgrade: %v", try, err)
		}
		// It is renewed again. (Who watches it instead may see it silent for a TTL, on a
		// machine that is slow.)
		for range 2 {
			was := beat(t, p, share)
			eventually(t, "the share is renewed", func() bool { return beat(t, p, share) > was })
		}
		_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
		wantErr(t, err, ErrHeld)
		writer, readers, err := q.Holders(ctx, "v")
		if err != nil || writer != nil || len(readers) != 1 || readers[0].ID != share.ID() {
			t.Fatal("it is not shared again", writer, readers, err)
		}
		other := shareLease(t, q, LeaseOptions{})
		if err := other.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := share.Release(ctx); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, q, LeaseOptions{Wait: -1})
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFailedUpgrade: the lease was taken, and then the server was gone. As soon as
// it is back what was read is good, if nobody wrote, and the upgrade succeeds.
func TestFailedUpgrade(t *testing.T) {
	ctx := t.Context()
	for _, lost := range []bool{false, true} { // the answer to the request that takes it
		st := newVolume(t, 1)
		p, r := host(t, st)
		q, _ := host(t, st)
		share := shareLease(t, p, LeaseOptions{})
		lease := p.leaseName(share.volume.UUID)
		r.hook(func(op, name string, _ int) error {
			if op == "swap" && name != lease { // the volume's record
				return kvstore.ErrUnreachable
			}
			return nil
		}, func(op, name string, _ int) error {
			if lost && op == "swap" && name == lease {
				return kvstore.ErrUnreachable
			}
			return nil
		})
		_, err := p.Acquire(ctx, "v", LeaseOptions{Wait: -1, Upgrade: share})
		wantErr(t, err, kvstore.ErrUnreachable)
		// That another daemon of the same machine took the lease would not be known
		// before the next renewal.
		passes := share.Fence().Passes()
		if r, _, err := p.readLease(ctx, share.volume.UUID); err != nil || r.held && passes {
			t.Error("what is read is believed while the record has no share", err)
		}
		r.hook(nil, nil)
		if err := share.Wait(ctx); err != nil {
			t.Fatal("after an upgrade that failed:", err)
		}
		_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
		wantErr(t, err, ErrHeld)
		l := acquire(t, p, LeaseOptions{Wait: -1, Upgrade: share})
		share.Abandon()
		if err := l.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUpgradesThatFail: one after the other, each further than the share's own record
// comes: nobody else wrote, so the share is whole in the end.
func TestUpgradesThatFail(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	q, _ := host(t, st)
	share := shareLease(t, p, LeaseOptions{})
	lease := p.leaseName(share.volume.UUID)
	leases := false // whether swaps of the lease's record fail as well
	var mu sync.Mutex
	fail := func(op, name string, _ int) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "swap" && (leases || name != lease) {
			return kvstore.ErrUnreachable
		}
		return nil
	}
	r.hook(func(op, name string, n int) error {
		mu.Lock()
		taken := op == "swap" && name != lease // the first one has the lease: from now on nobody gets it
		leases = leases || taken
		mu.Unlock()
		return fail(op, name, n)
	}, nil)
	for range 3 {
		if _, err := p.Acquire(ctx, "v", LeaseOptions{Wait: -1, Upgrade: share}); err == nil {
			t.Fatal("an upgrade whose records are not stored succeeded")
		}
		time.Sleep(testTTL / 2) // the share looks meanwhile, and cannot store its own
	}
	r.hook(nil, nil)
	if err := share.Wait(ctx); err != nil {
		t.Fatal("after upgrades that failed:", err)
	}
	_, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
	wantErr(t, err, ErrHeld)
	l := acquire(t, p, LeaseOptions{Wait: -1, Upgrade: share})
	share.Abandon()
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestPanicDuringUpgrade: an heir that never began does not keep its share waiting.
func TestPanicDuringUpgrade(t *testing.T) {
	ctx := t.Context()
	p, r := host(t, newVolume(t, 1))
	share := shareLease(t, p, LeaseOptions{})
	lease := p.leaseName(share.volume.UUID)
	r.hook(func(op, name string, _ int) error {
		if op == "swap" && name != lease {
			panic("planted")
		}
		return nil
	}, nil)
	err := kvstore.Contain(func() error {
		_, err := p.Acquire(ctx, "v", LeaseOptions{Wait: -1, Upgrade: share})
		return err
	})
	wantErr(t, err, kvstore.ErrPanic)
	r.hook(nil, nil)
	past(t, share.ttl) // what was valid before is so no more
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := share.Wait(ctx); err != nil {
		t.Fatal("after an upgrade that panicked:", err)
	}
}

// TestOvertakenUpgrade: somebody wrote since the share began, so there is nothing
// to upgrade; nor is the lease taken away from the next one.
func TestOvertakenUpgrade(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, r := host(t, st)
	q, _ := host(t, st)
	share := shareLease(t, p, LeaseOptions{})
	lift := outage(r)
	w := acquire(t, q, LeaseOptions{})
	if err := w.Release(ctx); err != nil {
		t.Fatal(err)
	}
	lift()
	_, err := p.Acquire(ctx, "v", LeaseOptions{Wait: -1, Upgrade: share})
	wantErr(t, err, ErrHeld)
	w = acquire(t, q, LeaseOptions{Wait: -1})
	if w.Generation() != 2 {
		t.Error("generation", w.Generation())
	}
	wantErr(t, share.Wait(ctx), ErrHeld)
	if err := w.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestLeftAfterUpgrade: who stops to read right after an upgrade that failed leaves
// nothing that others would wait for.
func TestLeftAfterUpgrade(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	q, _ := host(t, st)
	for range 20 {
		share := shareLease(t, p, LeaseOptions{TTL: time.Hour})
		acquire(t, p, LeaseOptions{Wait: -1, Upgrade: share}).Abandon()
		if err := share.Release(ctx); err != nil {
			t.Fatal(err)
		}
		l := acquire(t, q, LeaseOptions{Wait: -1})
		if err := l.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoReadersWantToWrite: neither may while the other reads. Each is told who the
// other one is, and the first whose other one has left succeeds.
func TestTwoReadersWantToWrite(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 1)
	pools := [2]*Pool{}
	shares := [2]*Lease{}
	errs := make(chan error, 2)
	for i := range pools {
		pools[i], _ = host(t, st)
		shares[i] = shareLease(t, pools[i], LeaseOptions{TTL: aliveTTL})
	}
	for i := range pools {
		go func() {
			_, err := pools[i].Acquire(ctx, "v", LeaseOptions{Upgrade: shares[i]})
			errs <- err
		}()
	}
	for range pools {
		err := <-errs
		wantErr(t, err, ErrHeld)
		if n := strings.Count(err.Error(), "(pid"); n != 1 || !strings.Contains(err.Error(), "close it there") {
			t.Errorf("%d readers are named, not the other one alone: %v", n, err)
		}
	}
	for i := range pools {
		if err := shares[i].Wait(ctx); err != nil {
			t.Fatal("the refusal cost a share:", err)
		}
	}
	if err := shares[1].Release(ctx); err != nil {
		t.Fatal(err)
	}
	l := acquire(t, pools[0], LeaseOptions{Wait: -1, Upgrade: shares[0]})
	shares[0].Abandon()
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestEnded: who may still store what a holding left.
func TestEnded(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	ended := func(l *Lease, want bool, when string) {
		t.Helper()
		if over, err := p.Ended(ctx, "v", l.ID(), l.Generation()); over != want || err != nil {
			t.Errorf("%s: ended %v, %v", when, over, err)
		}
	}
	l := acquire(t, p, LeaseOptions{})
	ended(l, false, "while it is held")
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	ended(l, true, "after its release")
	reader := shareLease(t, p, LeaseOptions{})
	ended(l, true, "beside readers")
	if err := reader.Release(ctx); err != nil {
		t.Fatal(err)
	}
	m := acquire(t, p, LeaseOptions{})
	ended(l, true, "while its successor holds it")
	ended(m, false, "the successor")
	m.Abandon()
	ended(m, false, "after a crash")
	if err := st.Control().Delete(ctx, 0, p.leaseName(l.volume.UUID)); err != nil {
		t.Fatal(err)
	}
	ended(l, true, "with the record lost, and a successor")
	ended(m, false, "with the record lost")
	_, err := p.Ended(ctx, "none", l.ID(), 1)
	if !errors.Is(err, ErrNoVolume) {
		t.Error(err)
	}
}
