package pool

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// The lease's record is lost: its holder writes it again, others wait, and the
// generation goes on.
func TestLostLeaseRecord(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 2)
	p, _ := host(t, st)
	v, err := p.Volume(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	name := p.leaseName(v.UUID)
	l := acquire(t, p, LeaseOptions{})
	if err := st.Control().Delete(ctx, 0, name); err != nil {
		t.Fatal(err)
	}
	q, _ := host(t, st)
	_, err = q.Acquire(ctx, "v", LeaseOptions{TTL: testTTL, Wait: -1})
	wantErr(t, err, ErrHeld)
	eventually(t, "the holder writes it again", func() bool {
		h, ok, err := q.Holder(ctx, "v")
		return err == nil && ok && h.ID == l.ID()
	})
	p.Close()
	if err := st.Control().Delete(ctx, 0, name); err != nil {
		t.Fatal(err)
	}
	began := kvstore.Boottime()
	m := acquire(t, q, LeaseOptions{})
	if waited := time.Duration(kvstore.Boottime() - began); m.Generation() != 2 || waited < testTTL {
		t.Errorf("generation %d after %v", m.Generation(), waited)
	}
	if err := m.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLostLeaseRecordIsResumed(t *testing.T) {
	ctx := t.Context()
	st := newVolume(t, 1)
	opt := Options{RuntimeDir: t.TempDir()}
	p := open(t, newRig(st), opt)
	l := acquire(t, p, LeaseOptions{TTL: time.Hour})
	p.Close()
	v, err := p.Volume(ctx, "v")
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Control().Delete(ctx, 0, p.leaseName(v.UUID)); err != nil {
		t.Fatal(err)
	}
	m := acquire(t, open(t, newRig(st), opt), LeaseOptions{Alone: true, Resume: true, Wait: -1})
	if m.ID() != l.ID() || m.Generation() != l.Generation() {
		t.Error("not resumed")
	}
	if err := m.Release(ctx); err != nil {
		t.Fatal(err)
	}
}

// An emptied server does not get the lease back: its pool is gone.
func TestHolderOnAnEmptiedServer(t *testing.T) {
	st := newVolume(t, 1)
	p, _ := host(t, st)
	l := acquire(t, p, LeaseOptions{})
	st.Forget(0)
	eventually(t, "the fence closes", func() bool { return !l.Fence().Passes() })
	// Who waits for the lease is told, and would else wait for ever.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	wantErr(t, l.Wait(ctx), kvstore.ErrServerLost)
	p.Close()
	if _, err := st.Control().Get(t.Context(), 0, p.leaseName(l.volume.UUID)); !errors.Is(err, kvstore.ErrAbsent) {
		t.Error("renewed on an emptied server", err)
	}
}
