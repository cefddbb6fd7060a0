package pool

import (
	"errors"
	"testing"
)

// TestBreak: a lease that is renewed is taken away by force only; its holder's
// fence is closed before anybody else may write; one that ran out is freed.
func TestBreak(t *testing.T) {
	t.Parallel() // it waits most of the time
	ctx := t.Context()
	st := newVolume(t, 1)
	p, _ := host(t, st)
	q, _ := host(t, st)
	holder := acquire(t, p, LeaseOptions{TTL: aliveTTL})
	wantErr(t, q.Break(ctx, "v", false), ErrHeld)
	if err := holder.Wait(ctx); err != nil {
		t.Fatal("a break that was refused:", err)
	}
	if err := q.Break(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if holder.Fence().Passes() {
		t.Error("the break has ended and the old holder may still write")
	}
	eventually(t, "the holder learns it", func() bool { return errors.Is(holder.Wait(ctx), ErrHeld) })
	if _, held, err := q.Holder(ctx, "v"); held || err != nil {
		t.Error("it is held after the break:", err)
	}
	next := acquire(t, q, LeaseOptions{Wait: -1})
	if next.Generation() <= holder.Generation()+1 {
		t.Errorf("generation %d after %d and the break", next.Generation(), holder.Generation())
	}
	next.Abandon()
	wantErr(t, q.Break(ctx, "v", false), ErrHeld) // of this machine: to be recovered, not broken
	third, _ := host(t, st)
	if err := third.Break(ctx, "v", false); err != nil {
		t.Fatal("of a holder that is gone:", err)
	}
	if err := third.Break(ctx, "v", false); err != nil {
		t.Fatal("of nobody:", err)
	}
}
