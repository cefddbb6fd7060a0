package failover

import (
	"context"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// cached puts a cache on a store and returns a channel through it, whose reads are
// those of a volume.
func cached(t *testing.T, s *redis.Store) kvstore.Channel {
	t.Helper()
	c, err := cache.Wrap(unclosed{s}, cache.Config{Size: 8 << 20, Log: t.Logf})
	want(t, err, nil)
	t.Cleanup(func() { want(t, c.Close(), nil) })
	c.Opened(testLayer)
	ch, err := c.Channel(bg(t))
	want(t, err, nil)
	t.Cleanup(func() { ch.Close() })
	return ch
}

// unclosed is closed by openStore's cleanup.
type unclosed struct{ kvstore.Store }

func (unclosed) Close() error { return nil }

func readVolume(n uint64) *kvstore.Op {
	op := read(n)
	op.Reader = 1
	return op
}

// TestCacheAfterOldSnapshot: a server comes back from an old snapshot. From the first
// answer that it gives, the cache serves nothing of what it had before, on any
// channel.
func TestCacheAfterOldSnapshot(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.TCP())
	s := openStore(t, redis.Config{Servers: []string{server.Addr()}})
	ch := cached(t, s)
	const blocks = 40
	put := func(round uint64) {
		t.Helper()
		for n := range uint64(blocks) {
			want(t, do1(t, ch, write(n, kvstore.Any, block(round+n))), nil)
		}
	}
	put(1000)
	server.Do("SAVE")
	put(2000)
	get := func(n uint64) []byte {
		t.Helper()
		r := readVolume(n)
		want(t, do1(t, ch, r), nil)
		return r.Data
	}
	for range 2 {
		for n := range uint64(blocks) {
			if string(get(n)) != string(block(2000+n)) {
				t.Fatalf("block %d is not what was written", n)
			}
		}
	}
	server.Restart()
	want(t, do1(t, ch, readVolume(1<<30)), kvstore.ErrAbsent) // this one asks the server
	for range 2 {
		for n := range uint64(blocks) {
			if string(get(n)) != string(block(1000+n)) {
				t.Fatalf("block %d is not what the server has", n)
			}
		}
	}
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

// TestCacheBehindFailover: a replica takes over that was cut off before the last
// writes. What the cache has of those is not served once it is known.
func TestCacheBehindFailover(t *testing.T) {
	t.Parallel()
	w := redistest.Sentinel(t, 1)
	w.Patience(time.Hour)
	s := openStore(t, redis.Config{Mode: redis.Sentinel, Servers: w.Addrs(), Master: redistest.MasterName})
	ch := cached(t, s)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	w.Master.Replicated()
	w.Replicas[0].Pause()
	// What fits the sockets in between would reach it: some 10 MB at most.
	for from := uint64(100); from < 10000; from += 500 {
		var ops []*kvstore.Op
		for n := range uint64(500) {
			ops = append(ops, write(from+n, kvstore.Any, block(n)))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	want(t, do1(t, ch, write(1, kvstore.Present, block(2))), nil)
	for range 2 {
		r := readVolume(1)
		want(t, do1(t, ch, r), nil)
		if string(r.Data) != string(block(2)) {
			t.Fatal("block 1 is not what was written")
		}
	}
	w.Patience(time.Second)
	w.Master.Stop()
	w.Replicas[0].Resume()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r := readVolume(1 << 30)
	ch.Do(ctx, []*kvstore.Op{r})
	want(t, r.Err, kvstore.ErrAbsent)
	for range 2 {
		r = readVolume(1)
		ch.Do(ctx, []*kvstore.Op{r})
		want(t, r.Err, nil)
		if string(r.Data) != string(block(1)) {
			t.Fatal("block 1 is not what the new master has")
		}
	}
}

// TestRewindsOfACluster: slots that move one by one are no reason to forget what was
// read; a node that loses all of them is.
func TestRewindsOfACluster(t *testing.T) {
	t.Parallel()
	c := redistest.Cluster(t, 3, 1)
	c.NoFailover()
	s := openStore(t, redis.Config{Mode: redis.Cluster, Servers: c.Addrs()[:2]})
	l := startLoad(t, s, 1, false)
	l.progress(t, 200)
	c.Move(c.Servers[0], c.Servers[1], 0, 40)
	l.progress(t, 500)
	if n := s.Rewinds(); n != 0 {
		t.Errorf("%d rewinds after 40 slots moved", n)
	}
	l.end(t)
	c.Failover()
	c.Servers[0].Stop()
	ch := channelOf(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var ops []*kvstore.Op
	for n := range uint64(200) {
		ops = append(ops, read(1<<30+n))
	}
	ch.Do(ctx, ops)
	for _, op := range ops {
		want(t, op.Err, kvstore.ErrAbsent)
	}
	if s.Rewinds() == 0 {
		t.Error("no rewind after a failover")
	}
}
