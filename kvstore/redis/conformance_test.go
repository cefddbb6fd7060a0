package redis

import (
	"context"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestConformance(t *testing.T) {
	t.Run("unix", func(t *testing.T) { conformance(t) })
	t.Run("tcp", func(t *testing.T) {
		if testing.Short() || storetest.RaceEnabled {
			t.Skip("the same over TCP takes some more seconds")
		}
		conformance(t, redistest.TCP())
	})
}

// capacity is a maxmemory in MiB that holds some blocks beside what an empty
// server takes.
func capacity(blocks int) redistest.Option { return redistest.MemoryMB(4 + blocks*itemSize>>20) }

func conformance(t *testing.T, opts ...redistest.Option) {
	storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
		opts := append([]redistest.Option(nil), opts...)
		if c.CapacityBlocks > 0 {
			opts = append(opts, capacity(c.CapacityBlocks))
		}
		var servers []*redistest.Server
		var cfg Config
		for range c.Servers {
			s := redistest.Start(t, opts...)
			servers = append(servers, s)
			cfg.Servers = append(cfg.Servers, s.Addr())
		}
		s, err := Open(bg(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Rig{
			Store: s,
			Empty: func(n int) { servers[n].Restart() },
			Corrupt: func(k kvstore.Key) {
				for _, srv := range servers {
					// One byte of the data, where the block is.
					if n, _ := srv.Client.StrLen(context.Background(), blockKey(k)).Result(); n > 0 {
						srv.Do("SETRANGE", blockKey(k), 77, "x")
					}
				}
			},
		}
	})
}
