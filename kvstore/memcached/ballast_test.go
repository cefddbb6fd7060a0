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

// TestBallastStaysMissing: an item that could not be brought back, as others took the
// room or the request was given up, is known to be missing.
func TestBallastStaysMissing(t *testing.T) {
	srv := &server{}
	take := func() *request {
		t.Helper()
		i, ok := srv.missingBallast()
		if !ok || srv.ballast.missing.Load() != 0 {
			t.Fatalf("%d, %v, %d", i, ok, srv.ballast.missing.Load())
		}
		return &request{step: stepBallast, server: srv, tries: uint8(i)}
	}
	srv.ballastLost(10)
	r := take()
	if _, done, err, bad := r.accept([]byte("SERVER_ERROR out of memory storing object\r\n"), nil); !done || err != nil || bad != nil {
		t.Fatal(done, err, bad)
	}
	if n := srv.ballast.missing.Load(); n != 1 {
		t.Errorf("after it was refused %d are missing, want 1", n)
	}
	r = take()
	(&channel{pending: 1}).complete(r, kvstore.ErrTimeout)
	if n := srv.ballast.missing.Load(); n != 1 {
		t.Errorf("after it was given up %d are missing, want 1", n)
	}
	r = take()
	if _, done, err, bad := r.accept([]byte("STORED\r\n"), nil); !done || err != nil || bad != nil {
		t.Fatal(done, err, bad)
	}
	if n := srv.ballast.missing.Load(); n != 0 {
		t.Errorf("after it came back %d are missing", n)
	}
}
