package memcached

import (
	"fmt"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestConformance(t *testing.T) {
	t.Run("unix", func(t *testing.T) { conformance(t) })
	t.Run("tcp", func(t *testing.T) {
		if testing.Short() || storetest.RaceEnabled {
			t.Skip("the same over TCP takes some more seconds")
		}
		conformance(t, memcachedtest.TCP())
	})
}

func conformance(t *testing.T, opts ...memcachedtest.Option) {
	storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
		opts := append([]memcachedtest.Option(nil), opts...)
		if c.CapacityBlocks > 0 {
			opts = append(opts, memcachedtest.MemoryMB(max(4, 3+c.CapacityBlocks/251)))
		}
		var servers []*memcachedtest.Server
		var cfg Config
		for range c.Servers {
			s := memcachedtest.Start(t, opts...)
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
				cmd := fmt.Sprintf("append %s 0 0 1\r\nx\r\n", keyText(k))
				for _, srv := range s.servers {
					_ = srv.talk(bg(t), []byte(cmd), func(in *lineReader) error { _, err := in.line(); return err })
				}
			},
		}
	})
}
