package writeback

import (
	"context"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// deferring makes every overwrite of a block that exists deferrable, as those of
// volumes are, from the first one on.
type deferring struct{ *Store }

func (d deferring) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	if err := d.Store.CreateLayer(ctx, id); err != nil {
		return err
	}
	d.Opened(id)
	d.get(id).seen.Store(true)
	return nil
}

func (d deferring) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := d.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	probe, err := d.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return &deferringChannel{Channel: ch, probe: probe, store: d.Store, data: make([]byte, kvstore.BlockSize)}, nil
}

type deferringChannel struct {
	kvstore.Channel
	probe kvstore.Channel
	store *Store
	op    kvstore.Op
	data  []byte
	ops   [1]*kvstore.Op
}

// mark asks which of the blocks exist.
func (c *deferringChannel) mark(ctx context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		op.Deferred = false
		op.Deferrable = false
		if op.Code != kvstore.Write || op.Expect != kvstore.Present || len(ops) > kvstore.MaxBatch {
			continue
		}
		c.op = kvstore.Op{Code: kvstore.Read, Key: op.Key, Seed: op.Seed, Data: c.data}
		c.ops[0] = &c.op
		c.probe.Do(ctx, c.ops[:])
		op.Deferrable = c.op.Err == nil
		if l := c.store.get(op.Key.Layer); l != nil {
			l.seen.Store(true)
		}
	}
}

func (c *deferringChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	c.mark(ctx, ops)
	c.Channel.Do(ctx, ops)
}

func (c *deferringChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.mark(ctx, ops)
	return c.Channel.Try(ctx, ops)
}

func (c *deferringChannel) Close() error {
	_ = c.probe.Close()
	return c.Channel.Close()
}

// A store with write-back is a store: with room for all, with next to none, and when
// it is always being drained.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		race bool // also with the race detector, where each takes seconds
	}{
		{"large", Config{MaxDirty: 64 << 20, MaxAge: time.Hour}, false},
		{"one block", Config{MaxDirty: 1, MaxAge: time.Hour}, false},
		{"small", Config{MaxDirty: 64 << 10, MaxAge: time.Millisecond}, true},
		{"at once", Config{MaxDirty: 64 << 20}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if storetest.RaceEnabled && !c.race {
				t.Skip("runs without the race detector")
			}
			storetest.Run(t, func(t testing.TB, n storetest.Case) storetest.Rig {
				m := mem.New(mem.Config{Servers: n.Servers, CapacityBlocks: n.CapacityBlocks, Reserve: true})
				cfg := c.cfg
				cfg.Log = t.Logf
				s, err := Wrap(m, cfg)
				must(t, err)
				return storetest.Rig{Store: deferring{s},
					Empty:   func(server int) { settle(t, s); m.Forget(server) },
					Corrupt: func(k kvstore.Key) { settle(t, s); m.Corrupt(k) }, // what is dirty is not corrupt
				}
			})
		})
	}
}

// settle stores all that is dirty.
func settle(t testing.TB, s *Store) {
	t.Helper()
	ch, err := s.Channel(context.Background())
	must(t, err)
	for id := range *s.layers.Load() {
		must(t, ch.Flush(context.Background(), id))
	}
	must(t, ch.Close())
}
