package failover

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
	"github.com/kvbfs/kvbfs/kvstore/redis"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// leases is the suite of leases on servers that all of its tests share.
func leases(t *testing.T, cfg redis.Config) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		return func() kvstore.Store {
			s, err := redis.Open(bg(t), cfg)
			want(t, err, nil)
			t.Cleanup(func() { want(t, s.Close(), nil) })
			return s
		}
	})
}

func TestClusterLeases(t *testing.T) {
	t.Parallel()
	c := redistest.Cluster(t, 3, 0)
	leases(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:1]})
}

func TestSentinelLeases(t *testing.T) {
	t.Parallel()
	w := redistest.Sentinel(t, 1)
	w.Patience(time.Hour) // a machine that stalls is no reason to replace the master
	leases(t, redis.Config{Mode: redis.Sentinel, Servers: w.Addrs(), Master: redistest.MasterName})
}
