package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestRenewalPanics: a panic in a renewal is a renewal that failed, and many in a
// row end the lease with an error instead of leaving writers to wait for ever.
func TestRenewalPanics(t *testing.T) {
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	var left atomic.Int64
	r.hook(func(op, name string, server int) error {
		if left.Add(-1) >= 0 {
			panic("planted")
		}
		return nil
	}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	left.Store(maxPanics - 1)
	eventually(t, "the renewals panic", func() bool { return left.Load() < 0 })
	if err := l.Wait(ctx); err != nil {
		t.Fatalf("after %d panics: %v", maxPanics-1, err)
	}
	left.Store(1 << 40)
	eventually(t, "the lease ends", func() bool { return l.Wait(ctx) != nil })
	if err := l.Wait(ctx); !errors.Is(err, kvstore.ErrPanic) {
		t.Fatalf("a lease whose renewals panic: %v", err)
	}
	if l.Fence().Passes() {
		t.Error("the fence of a lease that ended is open")
	}
}

// TestReleasePanics: a release that panics is one that failed.
func TestReleasePanics(t *testing.T) {
	st := newVolume(t, 1)
	p, r := host(t, st)
	l := acquire(t, p, LeaseOptions{TTL: time.Minute})
	r.hook(func(op, name string, server int) error { panic("planted") }, nil)
	if err := l.Release(t.Context()); !errors.Is(err, kvstore.ErrPanic) {
		t.Fatal(err)
	}
	r.hook(nil, nil)
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}
