package failover

import (
	"context"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestClusterConformance(t *testing.T) {
	c := redistest.Cluster(t, 3, 0)
	storetest.Run(t, func(t testing.TB, need storetest.Case) storetest.Rig {
		if need.CapacityBlocks > 0 {
			return storetest.Rig{Skip: "the servers are shared: a single server shows what full ones do"}
		}
		s, err := redis.Open(bg(t), redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:1]})
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Rig{
			Store: s,
			Empty: func(int) {
				for _, m := range c.Servers {
					m.Do("FLUSHALL")
				}
			},
			Corrupt: func(k kvstore.Key) {
				for _, m := range c.Servers { // those that do not have it say so
					_ = m.Client.SetRange(context.Background(), blockKey(k), 77, "x").Err()
				}
			},
		}
	})
}

// TestClusterReshard: slots move between masters and to a new one under load, and
// back; nothing fails and nothing is lost.
func TestClusterReshard(t *testing.T) {
	t.Parallel()
	c := redistest.Cluster(t, 2, 0)
	s := openStore(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:1]})
	l := startLoad(t, s, 2, true)
	defer l.end(t)
	l.progress(t, 500)
	c.Move(c.Servers[0], c.Servers[1], 0, 120)
	added := c.AddMaster(0)
	c.Move(c.Servers[1], added, 60, 60)
	c.Move(c.Servers[0], added, 700, 60)
	l.progress(t, 500)
	n := added.Do("DBSIZE").(int64)
	if n == 0 {
		t.Error("the new master has no keys: not much of a test")
	}
	c.Move(added, c.Servers[0], 700, 60)
	l.progress(t, 500)
}

// TestClusterFailover: a master is killed under load. Its replica takes over; what
// flushes waited for replicas for is there.
func TestClusterFailover(t *testing.T) {
	t.Parallel()
	c := redistest.Cluster(t, 3, 1)
	c.NoFailover()
	s := openStore(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:2], WaitReplicas: 1})
	ch := channelOf(t, s)
	var ops []*kvstore.Op
	for n := range uint64(400) {
		ops = append(ops, write(1<<30+n, kvstore.Absent, block(n)))
	}
	ch.Do(bg(t), ops)
	for _, op := range ops {
		want(t, op.Err, nil)
	}
	want(t, ch.Flush(bg(t), testLayer), nil)
	c.Failover()
	c.Servers[0].Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for n := range uint64(400) {
		r := read(1<<30 + n)
		ch.Do(ctx, []*kvstore.Op{r})
		want(t, r.Err, nil)
		if string(r.Data) != string(block(n)) {
			t.Fatalf("block %d differs after the failover", n)
		}
	}
	for n := range uint64(400) {
		w := write(1<<30+n, kvstore.Present, block(n+1000))
		ch.Do(ctx, []*kvstore.Op{w})
		want(t, w.Err, nil)
	}
}

// TestClusterPausedMaster: a master hangs, its replica takes over, and it comes back
// with what it still had in its sockets. Nothing that was acknowledged afterwards
// changes.
func TestClusterPausedMaster(t *testing.T) {
	t.Parallel()
	c := redistest.Cluster(t, 3, 1)
	c.NoFailover()
	s := openStore(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()})
	ch := channelOf(t, s)
	const blocks = 300
	all := func(round uint64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		var ops []*kvstore.Op
		for n := range uint64(blocks) {
			ops = append(ops, write(n, kvstore.Any, block(n+round*1000)))
		}
		ch.Do(ctx, ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	all(1)
	for _, m := range c.Servers[:3] {
		// All of it is at the replica before the master hangs.
		m.Replicated()
	}
	hung := c.Servers[1]
	c.Failover()
	hung.Pause()
	all(2)
	hung.Resume()
	c.NoFailover() // one failover, not two: a second one has the old master lead again
	all(3)
	redistest.Eventually(t, "the old master follows", func() bool { return hung.Info("replication", "master_link_status") == "up" })
	for n := range uint64(blocks) {
		wantBlock(t, ch, n, block(n+3000))
	}
}

// TestClusterAddresses: where a key is, and where a slot went, is followed however the nodes
// name each other: by IPv6, which Redis writes without brackets, and by name.
func TestClusterAddresses(t *testing.T) {
	t.Parallel()
	for name, opt := range map[string]func(testing.TB) redistest.Option{
		"IPv6": redistest.IPv6,
		"names": func(testing.TB) redistest.Option {
			return redistest.Args("--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := redistest.Cluster(t, 2, 0, opt(t))
			s := openStore(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:1]})
			ch := channelOf(t, s)
			want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
			slot := int(c.Servers[0].Do("CLUSTER", "KEYSLOT", blockKey(key(1))).(int64))
			from, to := c.Servers[0], c.Servers[1]
			if slot >= 16384/2 {
				from, to = to, from
			}
			c.HalfMove(from, to, slot)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			use := func(was, is uint64) {
				t.Helper()
				r, w := read(1), write(1, kvstore.Present, block(is))
				ch.Do(ctx, []*kvstore.Op{r})
				want(t, r.Err, nil)
				if string(r.Data) != string(block(was)) {
					t.Fatalf("not what was written in round %d", was)
				}
				ch.Do(ctx, []*kvstore.Op{w})
				want(t, w.Err, nil)
				want(t, ch.Flush(ctx, testLayer), nil)
			}
			use(1, 2) // by ASK
			c.Move(from, to, slot, 1)
			use(2, 3) // by MOVED
			if n, err := to.Client.Exists(ctx, blockKey(key(1))).Result(); n != 1 || err != nil {
				t.Errorf("the block is not on the slot's new node: %d, %v", n, err)
			}
		})
	}
}
