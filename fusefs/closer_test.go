package fusefs

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/fault"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// TestLossOfCloseStays: a volume that is closed for good without its lease, or without
// what its server lost, was closed with an error that each later wait gives too.
func TestLossOfCloseStays(t *testing.T) {
	for name, c := range map[string]struct {
		lose func(*mem.Store)
		want error
	}{
		"lease taken":    {func(st *mem.Store) { breakLeases(t, st, "a", "b") }, pool.ErrHeld},
		"server emptied": {func(st *mem.Store) { st.Forget(0) }, kvstore.ErrServerLost},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, run := context.Background(), t.TempDir()
			st := mem.New(mem.Config{})
			p, err := pool.Open(ctx, st, pool.Options{URL: "mem:", StateDir: t.TempDir(), RuntimeDir: run})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			vols := volume.New(p, st, volume.Options{RuntimeDir: run, Lease: pool.LeaseOptions{TTL: 60 * time.Millisecond, Wait: -1}})
			var closer closer
			closer.init(t.Logf)
			var opened []*volume.Volume
			for _, name := range []string{"a", "b"} {
				err := vols.Create(ctx, name, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				v, err := vols.Open(ctx, name, true)
				if err != nil {
					t.Fatal(err)
				}
				opened = append(opened, v)
			}
			c.lose(st)
			for _, v := range opened {
				closer.add(v)
			}
			for range 3 {
				err := closer.wait(ctx)
				if !errors.Is(err, c.want) || !ClosedForGood(err) {
					t.Fatalf("waiting for the close: %v, want %v", err, c.want)
				}
				if text := err.Error(); !strings.Contains(text, "volume a ") || !strings.Contains(text, "1 other") {
					t.Errorf("it does not say which: %v", err)
				}
			}
			if err := vols.Close(ctx); err != nil {
				t.Errorf("a volume is still open: %v", err)
			}
		})
	}
}

// TestClosingSaysWhy: what closes in the background, again and again, says why it has
// not succeeded so far, and nothing once it has.
func TestClosingSaysWhy(t *testing.T) {
	ctx, run := context.Background(), t.TempDir()
	st := fault.Wrap(mem.New(mem.Config{}), 1)
	p, err := pool.Open(ctx, st, pool.Options{URL: "mem:", StateDir: t.TempDir(), RuntimeDir: run})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	vols := volume.New(p, st, volume.Options{RuntimeDir: run})
	s := &Server{}
	s.closer.init(t.Logf)
	if err := vols.Create(ctx, "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	v, err := vols.Open(ctx, "a", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Closing(); err != nil {
		t.Errorf("before the close: %v", err)
	}
	st.SetRules(fault.Rule{Target: fault.Flushes, Action: fault.Fail, Err: kvstore.ErrFull})
	s.closer.add(v)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := s.Closing()
		if errors.Is(err, kvstore.ErrFull) && strings.Contains(err.Error(), "closing a: ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a close that fails says %v", err)
		}
	}
	st.SetRules()
	if err := s.closer.wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Closing(); err != nil {
		t.Errorf("after the close: %v", err)
	}
}

// breakLeases takes the leases of volumes away, as another machine would.
func breakLeases(t *testing.T, st *mem.Store, names ...string) {
	ctx := context.Background()
	other, err := pool.Open(ctx, st, pool.Options{URL: "mem:", StateDir: t.TempDir(), RuntimeDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, name := range names {
		if err := other.Break(ctx, name, true); err != nil {
			t.Fatal(err)
		}
	}
}
