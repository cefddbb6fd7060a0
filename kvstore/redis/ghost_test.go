package redis

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// TestGhostOfAnotherChannel: a write that was given up on one channel is executed
// late. A write of the same block on another channel, sent after that, must win.
func TestGhostOfAnotherChannel(t *testing.T) {
	server := redistest.Start(t)
	var stall atomic.Int32 // 1: the next connection that sends is stopped
	stalled, release := make(chan struct{}), make(chan struct{})
	addr := between(t, func(_ int, client net.Conn) {
		up, err := net.Dial(server.Network(), server.Addr())
		if err != nil {
			return
		}
		defer up.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for buf := make([]byte, 64<<10); ; {
				n, err := client.Read(buf)
				if n > 0 && stall.CompareAndSwap(1, 2) {
					close(stalled)
					<-release
				}
				if _, werr := up.Write(buf[:n]); err != nil || werr != nil {
					_ = up.(*net.UnixConn).CloseWrite()
					return
				}
			}
		}()
		_, _ = io.Copy(client, up)
		client.Close()
		<-done
	})
	s := openUnprovenVia(t, Config{Log: t.Logf}, addr, server)
	first, second := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, first, write(1, kvstore.Any, block(1))), nil)
	want(t, do1(t, second, read(1)), nil)

	stall.Store(1)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	w := write(1, kvstore.Present, block(2))
	first.Do(ctx, []*kvstore.Op{w})
	want(t, w.Err, kvstore.ErrTimeout)
	<-stalled
	time.AfterFunc(300*time.Millisecond, func() { close(release) })
	want(t, do1(t, second, read(1)), nil) // reads need not wait
	want(t, do1(t, second, write(1, kvstore.Present, block(3))), nil)
	<-release
	want(t, do1(t, first, write(2, kvstore.Any, block(4))), nil) // after the ghost
	for range 20 {
		wantBlock(t, second, 1, block(3))
	}
}
