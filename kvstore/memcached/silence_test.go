package memcached

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// Numbers of blocks that spread{2} places on the first and the second server.
const onFirst, onSecond = 0, 32

// A server that is silent is left; what the other one answers is there at once.
func TestTryLeavesASilentServer(t *testing.T) {
	servers := []*memcachedtest.Server{memcachedtest.Start(t, memcachedtest.TCP()), memcachedtest.Start(t, memcachedtest.TCP())}
	s := open(t, Config{}, servers...)
	ch := channelOf(t, s)
	const a, b = onFirst, onSecond
	want(t, do1(t, ch, write(a, kvstore.Any, block(1))), nil)
	want(t, do1(t, ch, write(b, kvstore.Any, block(2))), nil)
	servers[1].Pause()
	ra, wb := read(a), write(b, kvstore.Present, block(3))
	if ch.Try(bg(t), []*kvstore.Op{ra, wb}) {
		t.Fatalf("Try has all results while a server is stopped: %v, %v", ra.Err, wb.Err)
	}
	want(t, ra.Err, nil)
	want(t, wb.Err, kvstore.ErrPending)
	if string(ra.Data) != string(block(1)) {
		t.Error("the block of the server that answers is wrong")
	}
	if !s.AnySilent() || s.Silent(ra.Key) || !s.Silent(wb.Key) {
		t.Errorf("silent: any %v, of a %v, of b %v", s.AnySilent(), s.Silent(ra.Key), s.Silent(wb.Key))
	}
	done := make(chan struct{})
	go func() { ch.Finish(bg(t)); close(done) }()
	select {
	case <-done:
		t.Fatal("Finish returned while the server is stopped")
	case <-time.After(100 * time.Millisecond):
	}
	servers[1].Resume()
	<-done
	want(t, wb.Err, nil)
	if s.AnySilent() {
		t.Error("silent though it answered")
	}
	wantBlock(t, ch, b, block(3))
}

// A server that is dead is left too, and what became of it is found out.
func TestTryLeavesADeadServer(t *testing.T) {
	servers := []*memcachedtest.Server{memcachedtest.Start(t, memcachedtest.TCP()), memcachedtest.Start(t, memcachedtest.TCP())}
	s := open(t, Config{}, servers...)
	ch := channelOf(t, s)
	const a, b = onFirst, onSecond
	want(t, do1(t, ch, write(a, kvstore.Any, block(1))), nil)
	servers[1].Stop()
	rb := read(b)
	if ch.Try(bg(t), []*kvstore.Op{read(a), rb}) {
		t.Fatalf("Try has all results while a server is gone: %v", rb.Err)
	}
	servers[1].Restart()
	ch.Finish(bg(t))
	want(t, rb.Err, kvstore.ErrServerLost)
	if s.AnySilent() {
		t.Error("silent though it answered")
	}
}
