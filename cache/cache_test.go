package cache_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reading makes every read one that may be answered from memory, as those of
// volumes are: the suite's own reads ask the store itself.
type reading struct{ kvstore.Store }

func (r reading) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := r.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return readingChannel{ch}, nil
}

type readingChannel struct{ kvstore.Channel }

func (c readingChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		if op.Code == kvstore.Read {
			op.Reader = 7
		}
	}
	c.Channel.Do(ctx, ops)
}

func (c readingChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	for _, op := range ops {
		if op.Code == kvstore.Read {
			op.Reader = 7
		}
	}
	return c.Channel.Try(ctx, ops)
}

func opener(cfg cache.Config, cached bool) storetest.Opener {
	return func(t testing.TB, c storetest.Case) storetest.Rig {
		m := mem.New(mem.Config{Servers: c.Servers, CapacityBlocks: c.CapacityBlocks, Reserve: true})
		s := wrap(t, m, cfg)
		rig := storetest.Rig{
			Store: s,
			Empty: m.Forget,
			Corrupt: func(k kvstore.Key) {
				m.Corrupt(k)
				s.Drop() // what is in memory is not corrupt
			},
		}
		if cached {
			rig.Store = reading{s}
		}
		return rig
	}
}

func wrap(t testing.TB, inner kvstore.Store, cfg cache.Config) *cache.Store {
	t.Helper()
	s, err := cache.Wrap(inner, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A store behind a cache is a store: with one that holds everything, one that is
// always full, one that reads ahead, and for reads that may not be cached.
func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    cache.Config
		cached bool
		race   bool // also with the race detector, where each takes seconds
	}{
		{"large", cache.Config{Size: 64 << 20}, true, false},
		{"one set", cache.Config{Size: 1}, true, true},
		{"small", cache.Config{Size: 1 << 20}, true, false},
		{"read-ahead", cache.Config{Size: 64 << 20, ReadAhead: 1 << 20}, true, true},
		{"small, read-ahead", cache.Config{Size: 1 << 20, ReadAhead: 1 << 20}, true, false},
		{"bypassed", cache.Config{Size: 1 << 20}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if storetest.RaceEnabled && !c.race {
				t.Skip("runs without the race detector")
			}
			storetest.Run(t, opener(c.cfg, c.cached))
		})
	}
}
