package wiretest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Between accepts connections and hands each, with its number, to f.
func Between(t testing.TB, f func(n int, client net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				f(n, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// Relay passes bytes between a client and a server; back may spoil the replies.
func Relay(client net.Conn, server Server, back func(io.Writer, io.Reader)) {
	up, err := net.Dial(server.Network(), server.Addr())
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, client)
		up.Close()
	}()
	back(client, up)
	client.Close()
	up.Close()
	<-done
}

// Exercise runs a fixed history over a bad line; all of it must succeed.
func Exercise(t *testing.T, ch kvstore.Channel, blocks uint64) {
	t.Helper()
	for round, e := range []kvstore.Expect{kvstore.Absent, kvstore.Present, kvstore.Any, kvstore.Same} {
		var ops []*kvstore.Op
		for n := range blocks {
			w := Write(n, e, Block(n+uint64(round)*1000))
			if e == kvstore.Same {
				r := Read(n)
				r.Versioned = true
				Want(t, Do1(t, ch, r), nil)
				w.Version = r.Version
			}
			ops = append(ops, w)
		}
		ch.Do(Background(t), ops)
		for n := range ops {
			Want(t, ops[n].Err, nil)
			ops[n] = Read(uint64(n))
		}
		ops = append(ops, Read(blocks+5))
		ch.Do(Background(t), ops)
		for n, op := range ops[:blocks] {
			Want(t, op.Err, nil)
			if !bytes.Equal(op.Data, Block(uint64(n+round*1000))) {
				t.Fatalf("round %d: block %d differs", round, n)
			}
		}
		Want(t, ops[blocks].Err, kvstore.ErrAbsent)
	}
	for n := range blocks {
		Want(t, Do1(t, ch, Discard(n)), nil)
	}
}

// SlowSlices: replies come in small pieces.
func SlowSlices(t *testing.T, rig Rig) {
	server := rig.Start(t, false)
	addr := Between(t, func(_ int, c net.Conn) {
		Relay(c, server, func(w io.Writer, r io.Reader) {
			// One byte at a time around the headers, larger pieces in between.
			buf := make([]byte, 1)
			for i := 0; ; i++ {
				n, err := r.Read(buf[:cap(buf)])
				if err != nil {
					return
				}
				if _, err := w.Write(buf[:n]); err != nil {
					return
				}
				if i%60 == 0 {
					buf = make([]byte, 997)
				} else {
					buf = make([]byte, 1)
				}
			}
		})
	})
	Exercise(t, ChannelOf(t, rig.via(t, addr, server)), 20)
}

// CutReplies: each connection dies after some bytes of replies, in the
// middle of anything; what was in flight may have been executed or not.
func CutReplies(t *testing.T, rig Rig) {
	server := rig.Start(t, false)
	var cuts atomic.Int64
	addr := Between(t, func(n int, c net.Conn) {
		Relay(c, server, func(w io.Writer, r io.Reader) {
			// Every third connection lets more than one block's reply through:
			// there is progress.
			_, _ = io.CopyN(w, r, int64(3+n*2777%13001))
			cuts.Add(1)
		})
	})
	Exercise(t, ChannelOf(t, rig.via(t, addr, server)), 12)
	if cuts.Load() < 10 {
		t.Errorf("only %d cuts", cuts.Load())
	}
}

// Babbler: a server that only ever answers nonsense keeps nobody longer than
// ctx, and is not dialled in a tight loop.
func Babbler(t *testing.T, rig Rig) {
	var dials atomic.Int64
	addr := Between(t, func(_ int, c net.Conn) {
		dials.Add(1)
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			fmt.Fprint(c, "BLAH\r\n")
		}
	})
	ch := ChannelOf(t, rig.via(t, addr, rig.Start(t, false)))
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	r := Read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	Want(t, r.Err, kvstore.ErrTimeout)
	if n := dials.Load(); n > 20 {
		t.Errorf("%d dials in half a second", n)
	}
}

// Ghost: writes are given up while the server has not read them. What waits
// in the server must not overwrite what is written later, on any channel.
func Ghost(t *testing.T, rig Rig) {
	for _, tcp := range []bool{false, true} {
		server := rig.Start(t, tcp)
		s := rig.open(t, Options{}, server)
		channels := []kvstore.Channel{ChannelOf(t, s), ChannelOf(t, s)}
		for _, ch := range channels {
			Want(t, Do1(t, ch, Write(1, kvstore.Any, Block(1))), nil)
		}
		for i := range uint64(6) {
			server.Pause()
			patience := 20 * time.Millisecond
			if i == 0 {
				patience *= 10 // over a connection that is there it is sent for sure
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			w := Write(1, kvstore.Present, Block(100+i))
			channels[0].Do(ctx, []*kvstore.Op{w})
			cancel()
			Want(t, w.Err, kvstore.ErrTimeout)
			if i == 0 && !s.Haunted(w.Key) {
				t.Error("a write was sent and given up, and the store says that nothing can come late")
			}
			server.Resume()
			ch := channels[i%2]
			Want(t, Do1(t, ch, Write(1, kvstore.Present, Block(200+i))), nil)
			if s.Haunted(w.Key) {
				t.Error("a later write was executed, and the store says that an earlier one can come")
			}
			for range 20 {
				WantBlock(t, ch, 1, Block(200+i))
			}
		}
	}
}

// GhostOfAnotherChannel: a write that was given up on one channel is executed
// late. A write of the same block on another channel, sent after that, must win.
func GhostOfAnotherChannel(t *testing.T, rig Rig) {
	server := rig.Start(t, false)
	var stall atomic.Int32 // 1: the next connection that sends is stopped
	stalled, release := make(chan struct{}), make(chan struct{})
	addr := Between(t, func(_ int, client net.Conn) {
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
	s := rig.via(t, addr, server)
	first, second := ChannelOf(t, s), ChannelOf(t, s)
	Want(t, Do1(t, first, Write(1, kvstore.Any, Block(1))), nil)
	Want(t, Do1(t, second, Read(1)), nil)

	stall.Store(1)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	w := Write(1, kvstore.Present, Block(2))
	first.Do(ctx, []*kvstore.Op{w})
	Want(t, w.Err, kvstore.ErrTimeout)
	<-stalled
	time.AfterFunc(300*time.Millisecond, func() { close(release) })
	Want(t, Do1(t, second, Read(1)), nil) // reads need not wait
	Want(t, Do1(t, second, Write(1, kvstore.Present, Block(3))), nil)
	<-release
	Want(t, Do1(t, first, Write(2, kvstore.Any, Block(4))), nil) // after the ghost
	for range 20 {
		WantBlock(t, second, 1, Block(3))
	}
}
