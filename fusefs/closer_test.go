package fusefs

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
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
