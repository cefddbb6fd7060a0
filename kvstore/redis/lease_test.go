package redis

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		server := redistest.Start(t)
		return func() kvstore.Store {
			s, err := Open(bg(t), Config{Servers: []string{server.Addr()}})
			want(t, err, nil)
			t.Cleanup(func() { want(t, s.Close(), nil) })
			return s
		}
	})
}
