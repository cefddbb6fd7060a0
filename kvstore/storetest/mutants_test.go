package storetest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// mutant is a store with one planted bug.
type mutant struct {
	kvstore.Store
	mu    sync.Mutex // guards what do keeps: channels run in parallel
	do    func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op)
	flush func(inner kvstore.Channel, ctx context.Context, layer kvstore.LayerID) error
}

type mutantChannel struct {
	kvstore.Channel
	m *mutant
}

func (m *mutant) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := m.Store.Channel(ctx)
	return &mutantChannel{ch, m}, err
}

func (c *mutantChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.m.do == nil {
		c.Channel.Do(ctx, ops)
		return
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.do(c.Channel, ctx, ops)
}

func (c *mutantChannel) Flush(ctx context.Context, layer kvstore.LayerID) error {
	if c.m.flush == nil {
		return c.Channel.Flush(ctx, layer)
	}
	return c.m.flush(c.Channel, ctx, layer)
}

// after is a mutant that spoils what the store did.
func after(f func(op *kvstore.Op)) *mutant {
	return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
		inner.Do(ctx, ops)
		for _, op := range ops {
			f(op)
		}
	}}
}

// mutants are made anew for each test process.
var mutants = map[string]func() *mutant{
	"one write in 97 is dropped": func() *mutant {
		n := 0
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			var on []*kvstore.Op
			for _, op := range ops {
				if op.Code == kvstore.Write {
					if n++; n%97 == 0 {
						op.Err = nil
						continue
					}
				}
				on = append(on, op)
			}
			inner.Do(ctx, on)
		}}
	},
	"zeros for a miss": func() *mutant {
		return after(func(op *kvstore.Op) {
			if op.Code == kvstore.Read && errors.Is(op.Err, kvstore.ErrAbsent) {
				clear(op.Data)
				op.Err = nil
			}
		})
	},
	"corruption is not told": func() *mutant {
		return after(func(op *kvstore.Op) {
			if errors.Is(op.Err, kvstore.ErrCorrupt) {
				op.Err = nil
			}
		})
	},
	"fences are not looked at": func() *mutant {
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			for _, op := range ops {
				op.Fence = nil
			}
			inner.Do(ctx, ops)
		}}
	},
	"expectations are not looked at": func() *mutant {
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			for _, op := range ops {
				op.Expect = min(op.Expect, kvstore.Any)
			}
			inner.Do(ctx, ops)
		}}
	},
	"the last result of a batch is lost": func() *mutant {
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			inner.Do(ctx, ops)
			if len(ops) > 3 {
				ops[len(ops)-1].Err = nil
			}
		}}
	},
	"write buffers are kept": func() *mutant {
		var kept []*kvstore.Op // written again with whatever is in them later
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			if len(kept) > 0 {
				inner.Do(ctx, kept)
			}
			kept = nil
			inner.Do(ctx, ops)
			for _, op := range ops {
				if op.Code == kvstore.Write && op.Err == nil {
					kept = append(kept, &kvstore.Op{Code: op.Code, Key: op.Key, Seed: op.Seed, Data: op.Data})
				}
			}
		}}
	},
	"discards do nothing": func() *mutant {
		return &mutant{do: func(inner kvstore.Channel, ctx context.Context, ops []*kvstore.Op) {
			var on []*kvstore.Op
			for _, op := range ops {
				if op.Code == kvstore.Discard {
					op.Err = nil
					continue
				}
				on = append(on, op)
			}
			inner.Do(ctx, on)
		}}
	},
	"blocks are torn": func() *mutant {
		return after(func(op *kvstore.Op) {
			if op.Code == kvstore.Read && op.Err == nil && op.Key.Number%7 == 3 {
				op.Data[kvstore.BlockSize-1] ^= 1
			}
		})
	},
	"flush does nothing": func() *mutant {
		return &mutant{flush: func(kvstore.Channel, context.Context, kvstore.LayerID) error { return nil }}
	},
	"the context is not looked at": func() *mutant {
		return &mutant{do: func(inner kvstore.Channel, _ context.Context, ops []*kvstore.Op) {
			inner.Do(context.Background(), ops)
		}}
	},
	"it allocates": func() *mutant {
		return after(func(op *kvstore.Op) { waste = make([]byte, kvstore.BlockSize) })
	},
}

var waste []byte

// Each planted bug makes the suite fail, in a process of its own; without one it
// passes.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process per mutant")
	}
	for name := range mutants {
		t.Run(name, func(t *testing.T) {
			if name == "it allocates" && storetest.RaceEnabled {
				t.Skip("allocations are not counted under the race detector")
			}
			if out, err := suite(name); err == nil {
				t.Errorf("the suite passes:\n%s", out)
			} else if !strings.Contains(out, "--- FAIL: TestSuite/") {
				t.Errorf("the suite did not fail, the process did: %v\n%s", err, out)
			}
		})
	}
	if out, err := suite("none"); err != nil {
		t.Errorf("without a bug: %v\n%s", err, out)
	}
}

func suite(name string) (string, error) {
	c := exec.Command(os.Args[0], "-test.run=^TestSuite$", "-test.timeout=60s")
	c.Env = append(os.Environ(), "KVBFS_TEST_MUTANT="+name)
	out, err := c.CombinedOutput()
	return string(out), err
}

// TestSuite is what TestMutants runs in its processes.
func TestSuite(t *testing.T) {
	name := os.Getenv("KVBFS_TEST_MUTANT")
	if name == "" {
		t.Skip("runs as a child of TestMutants")
	}
	storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
		s := mem.New(mem.Config{Servers: c.Servers, CapacityBlocks: c.CapacityBlocks, Reserve: true})
		rig := storetest.Rig{Store: s, Empty: s.Forget, Corrupt: func(k kvstore.Key) { s.Corrupt(k) }}
		if mutants[name] != nil {
			m := mutants[name]()
			m.Store = s
			rig.Store = m
		}
		return rig
	})
}

// Try and Finish go the same way: what is embedded must not be reached past Do.
func (c *mutantChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

func (c *mutantChannel) Finish(context.Context) {}
