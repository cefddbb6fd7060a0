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

// TestRefusedRefill: an item that should come back after a discard, and was refused or met
// the end of its connection, is still known to be missing.
func TestRefusedRefill(t *testing.T) {
	srv := &server{}
	for name, end := range map[string]func(*request){
		"refused": func(r *request) {
			_, done, _, err := r.accept([]byte("SERVER_ERROR out of memory storing object\r\n"), []*request{r})
			if !done || err != nil {
				t.Fatal(done, err)
			}
		},
		"given up": func(r *request) { (&channel{pending: 1}).complete(r, kvstore.ErrUnreachable) },
	} {
		srv.ballastLost(7)
		i, ok := srv.missingBallast() // as refill does
		if !ok || i != 7 {
			t.Fatal(i, ok)
		}
		end(&request{step: stepBallast, server: srv, tries: uint8(i)})
		if srv.ballast.missing.Load() != 1 {
			t.Errorf("%s: the item is taken for one that is there", name)
		}
	}
}
