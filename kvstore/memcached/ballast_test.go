package memcached

import (
	"context"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// TestBallastComesBack over whatever connection a discard took.
func TestBallastComesBack(t *testing.T) {
	s := open(t, Config{Connections: 2}, memcachedtest.Start(t))
	ch := channelOf(t, s)
	var ops []*kvstore.Op
	for n := range uint64(16) { // the first connection's turn
		ops = append(ops, read(n))
	}
	ch.Do(bg(t), ops)
	s.servers[0].ballastLost(5)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	op := discard(1)
	ch.Do(ctx, []*kvstore.Op{op})
	want(t, op.Err, nil)
	if ctx.Err() != nil || s.servers[0].ballast.missing.Load() != 0 {
		t.Fatal("the ballast item was not added again", ctx.Err())
	}
}
