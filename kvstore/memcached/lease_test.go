package memcached

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
)

func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		server := memcachedtest.Start(t)
		return func() kvstore.Store {
			s, err := Open(bg(t), Config{Servers: []string{server.Addr()}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
	})
}
