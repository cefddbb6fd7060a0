package redis

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// between accepts connections and hands each, with its number, to f.
func between(t testing.TB, f func(n int, client net.Conn)) (addr string) {
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

// relay passes bytes between a client and a server; back may spoil the replies.
func relay(client net.Conn, server *redistest.Server, back func(io.Writer, io.Reader)) {
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

// exercise runs a fixed history over a bad line; all of it must succeed.
func exercise(t *testing.T, ch kvstore.Channel, blocks uint64) {
	t.Helper()
	for round, e := range []kvstore.Expect{kvstore.Absent, kvstore.Present, kvstore.Any, kvstore.Same} {
		var ops []*kvstore.Op
		for n := range blocks {
			w := write(n, e, block(n+uint64(round)*1000))
			if e == kvstore.Same {
				r := read(n)
				r.Versioned = true
				want(t, do1(t, ch, r), nil)
				w.Version = r.Version
			}
			ops = append(ops, w)
		}
		ch.Do(bg(t), ops)
		for n := range ops {
			want(t, ops[n].Err, nil)
			ops[n] = read(uint64(n))
		}
		ops = append(ops, read(blocks+5))
		ch.Do(bg(t), ops)
		for n, op := range ops[:blocks] {
			want(t, op.Err, nil)
			if !bytes.Equal(op.Data, block(uint64(n+round*1000))) {
				t.Fatalf("round %d: block %d differs", round, n)
			}
		}
		want(t, ops[blocks].Err, kvstore.ErrAbsent)
	}
	for n := range blocks {
		want(t, do1(t, ch, discard(n)), nil)
	}
}

func TestSlowSlices(t *testing.T) {
	server := redistest.Start(t)
	addr := between(t, func(_ int, c net.Conn) {
		relay(c, server, func(w io.Writer, r io.Reader) {
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
	exercise(t, channelOf(t, openUnprovenVia(t, Config{}, addr, server)), 20)
}

// TestCutReplies: each connection dies after some bytes of replies, in the
// middle of anything; what was in flight may have been executed or not.
func TestCutReplies(t *testing.T) {
	server := redistest.Start(t)
	var cuts atomic.Int64
	addr := between(t, func(n int, c net.Conn) {
		relay(c, server, func(w io.Writer, r io.Reader) {
			// Every third connection lets more than one block's reply through:
			// there is progress.
			_, _ = io.CopyN(w, r, int64(3+n*2777%13001))
			cuts.Add(1)
		})
	})
	exercise(t, channelOf(t, openUnprovenVia(t, Config{}, addr, server)), 12)
	if cuts.Load() < 10 {
		t.Errorf("only %d cuts", cuts.Load())
	}
}

// garbage is what no Redis answers to what was asked.
var garbage = []string{
	"", "\n", "\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "-ERR unknown command\r\n", "-ERR max number of clients reached\r\n",
	"+OK", "+OK\n", "+OK\r\n+OK\r\n+OK\r\n+OK\r\n", ":1\r\n", ":99999999999999999999999\r\n", "$\r\n", "$-2\r\n", "$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
	"$4108\r\n" + strings.Repeat("x", 4108) + "\r\n", "$99999999999999999999\r\n", "$536870913\r\n", "$4108\r\n" + strings.Repeat("y", 4108) + "no end",
	"*0\r\n", "*-1\r\n", "*5\r\n:1\r\n", "*2\r\n$1\r\nx\r\n", "-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n", "-MOVED 1 \r\n", "-ASK 99999 x\r\n", "%1\r\n+a\r\n+b\r\n", "_\r\n",
	strings.Repeat("z", 100000), strings.Repeat("\x00", 3000) + "\r\n",
}

// TestGarbage: every other connection is answered with nonsense, some of it in place
// of the greeting, some behind a good one.
func TestGarbage(t *testing.T) {
	server := redistest.Start(t)
	var turn atomic.Int64
	addr := between(t, func(_ int, c net.Conn) {
		n := int(turn.Add(1) - 1)
		if n%2 == 1 || n/2 >= 2*len(garbage) {
			relay(c, server, func(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) })
			return
		}
		in := bufio.NewReader(c)
		if n/2 >= len(garbage) && !greetWell(in, c) {
			return
		}
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		fmt.Fprint(c, garbage[n/2%len(garbage)])
	})
	good := channelOf(t, openUnproven(t, Config{}, server.Addr()))
	want(t, do1(t, good, write(1, kvstore.Any, block(1))), nil)
	s := openUnprovenVia(t, Config{}, addr, server)
	for range 2 * len(garbage) {
		ch := channelOf(t, s)
		r, v := read(1), read(1)
		v.Versioned = true
		ch.Do(bg(t), []*kvstore.Op{r, v})
		for _, op := range []*kvstore.Op{r, v} {
			// A block of a wrong length is a corrupt block, not garbage.
			if op.Err == nil && !bytes.Equal(op.Data, block(1)) {
				t.Fatal("garbage was taken for a block")
			}
		}
		want(t, do1(t, ch, write(2, kvstore.Any, block(2))), nil)
		wantBlock(t, ch, 2, block(2))
	}
}

// greetWell plays a server's part of the greeting without a sentinel.
func greetWell(in *bufio.Reader, c net.Conn) bool {
	// CLIENT SETNAME x, CLIENT ID, INFO replication: 7, 5 and 5 lines.
	for range 7 + 5 + 5 {
		if _, err := in.ReadString('\n'); err != nil {
			return false
		}
	}
	_, err := io.WriteString(c, "+OK\r\n:7\r\n$13\r\nrole:master\r\n\r\n")
	return err == nil
}

// TestBabbler: a server that only ever answers nonsense keeps nobody longer than
// ctx, and is not dialled in a tight loop.
func TestBabbler(t *testing.T) {
	var dials atomic.Int64
	addr := between(t, func(_ int, c net.Conn) {
		dials.Add(1)
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			fmt.Fprint(c, "BLAH\r\n")
		}
	})
	ch := channelOf(t, openUnprovenVia(t, Config{}, addr, redistest.Start(t)))
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	r := read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	want(t, r.Err, kvstore.ErrTimeout)
	if n := dials.Load(); n > 20 {
		t.Errorf("%d dials in half a second", n)
	}
}

// TestGhost: writes are given up while the server has not read them. What waits
// in the server must not overwrite what is written later, on any channel.
func TestGhost(t *testing.T) {
	for _, opts := range [][]redistest.Option{nil, {redistest.TCP()}} {
		server := redistest.Start(t, opts...)
		s := open(t, Config{}, server)
		channels := []kvstore.Channel{channelOf(t, s), channelOf(t, s)}
		for _, ch := range channels {
			want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
		}
		for i := range uint64(6) {
			server.Pause()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			w := write(1, kvstore.Present, block(100+i))
			channels[0].Do(ctx, []*kvstore.Op{w})
			cancel()
			want(t, w.Err, kvstore.ErrTimeout)
			server.Resume()
			ch := channels[i%2]
			want(t, do1(t, ch, write(1, kvstore.Present, block(200+i))), nil)
			for range 20 {
				wantBlock(t, ch, 1, block(200+i))
			}
		}
	}
}
