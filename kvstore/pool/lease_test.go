package pool

import (
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

const testTTL = 90 * time.Millisecond

func TestLifeOfALease(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{})
	p := open(t, st, Options{RuntimeDir: t.TempDir()})
	makeReady(t, p, "v")
	l, err := p.Acquire(ctx, "v", LeaseOptions{TTL: testTTL})
	if err != nil {
		t.Fatal(err)
	}
	if !l.Fence().Passes() || l.Generation() != 1 {
		t.Fatal("fence closed or generation", l.Generation())
	}
	q := open(t, st, Options{RuntimeDir: t.TempDir()})
	_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL})
	wantErr(t, err, ErrHeld)
	h, ok, err := q.Holder(ctx, "v")
	if err != nil || !ok || h.ID != l.ID() || h.SameHost {
		t.Fatal(h, ok, err)
	}
	if err := l.Release(ctx); err != nil {
		t.Fatal(err)
	}
	if l.Fence().Passes() {
		t.Fatal("fence passes after release")
	}
	m, err := q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
	if err != nil || m.Generation() != 2 {
		t.Fatal(err)
	}
	if err := errors.Join(m.Wait(ctx), m.Release(ctx), m.Release(ctx)); err != nil {
		t.Fatal(err)
	}
	wantErr(t, m.Wait(ctx), kvstore.ErrFenced)
}
