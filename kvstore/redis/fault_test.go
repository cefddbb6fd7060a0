package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// logbook collects what a store logs.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) log(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logbook) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

func TestPausedServerIsWaitedFor(t *testing.T) {
	for name, opts := range map[string][]redistest.Option{"unix": nil, "tcp": {redistest.TCP()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, opts...)
			var book logbook
			s := open(t, Config{Log: book.log, TryTimeout: 300 * time.Millisecond}, server)
			ch := channelOf(t, s)
			want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
			server.Pause()
			done := make(chan error)
			go func() {
				w := write(1, kvstore.Present, block(2))
				ch.Do(bg(t), []*kvstore.Op{w})
				done <- w.Err
			}()
			select {
			case err := <-done:
				t.Fatalf("ended while the server was stopped: %v", err)
			case <-time.After(1500 * time.Millisecond):
			}
			server.Resume()
			want(t, <-done, nil)
			wantBlock(t, ch, 1, block(2))
			// Once, not once per try; on a loaded machine a later request may take
			// longer than a try, too.
			if n := book.count("does not answer"); n < 1 || n > 2 || book.count("answers again") != n {
				t.Errorf("log of the outage: %q", book.lines)
			}
		})
	}
}

func TestContextEndsAnOutage(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	server.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	defer cancel()
	w := write(1, kvstore.Present, block(2))
	ch.Do(ctx, []*kvstore.Op{w})
	want(t, w.Err, kvstore.ErrTimeout)
	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(150*time.Millisecond, cancel)
	r := read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	want(t, r.Err, kvstore.ErrAborted)
	want(t, ch.Flush(ctx, testLayer), kvstore.ErrAborted)
	server.Resume()
	want(t, do1(t, ch, read(1)), nil)
	want(t, do1(t, ch, write(1, kvstore.Present, block(3))), nil)
	wantBlock(t, ch, 1, block(3))
}

func TestDeadServerIsWaitedFor(t *testing.T) {
	server := redistest.Start(t, redistest.TCP())
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	server.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	r := read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	want(t, r.Err, kvstore.ErrTimeout)
	_, err := s.Control().Get(bg(t), 0, "a:b")
	want(t, err, kvstore.ErrUnreachable)
	_, err = s.Usage(bg(t))
	want(t, err, kvstore.ErrUnreachable)
}

func TestEmptiedServer(t *testing.T) {
	for _, opts := range [][]redistest.Option{nil, {redistest.TCP()}} {
		good, bad := redistest.Start(t, opts...), redistest.Start(t, opts...)
		s := open(t, Config{}, good, bad)
		ch := channelOf(t, s)
		// Block 0 is on the first server, block 32 on the second.
		for _, n := range []uint64{0, 32} {
			want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
		}
		want(t, ch.Flush(bg(t), testLayer), nil)
		want(t, do1(t, ch, write(32, kvstore.Present, block(5))), nil)
		bad.Restart()
		ops := []*kvstore.Op{read(0), read(32), write(33, kvstore.Absent, block(1)), discard(34)}
		ch.Do(bg(t), ops)
		want(t, ops[0].Err, nil)
		for _, op := range ops[1:] {
			want(t, op.Err, kvstore.ErrServerLost)
		}
		for range 2 {
			err := ch.Flush(bg(t), testLayer)
			want(t, err, kvstore.ErrServerLost)
			var op *kvstore.OpError
			if !errors.As(err, &op) || op.Server != bad.Addr() {
				t.Fatalf("which server: %v", err)
			}
		}
	}
}

// TestFlushFindsFlushAll: a neighbour's FLUSHALL breaks no connection.
func TestFlushFindsFlushAll(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Config{}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	want(t, do1(t, ch, write(1, kvstore.Present, block(2))), nil)
	server.Do("FLUSHALL")
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	want(t, other.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

// stored is a block as Redis holds it.
func stored(k kvstore.Key, seed uint32, data []byte) []byte {
	var end [trailer]byte
	putTrailer(end[:], kvstore.Checksum(seed, k, data), 1)
	return append(append([]byte(nil), data...), end[:]...)
}

func TestCorruptBlocks(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	set := func(value []byte) { t.Helper(); server.Do("SET", blockKey(key(1)), value) }
	good := block(1)
	value := stored(key(1), 7, good)
	for name, spoil := range map[string]func(){
		"short":      func() { set(value[:4000]) },
		"one short":  func() { set(value[:valueSize-1]) },
		"empty":      func() { set(nil) },
		"long":       func() { set(append(append([]byte(nil), value...), 1)) },
		"very long":  func() { set(make([]byte, 900<<10)) },
		"no sum":     func() { set(append(append([]byte(nil), good...), make([]byte, trailer)...)) },
		"other data": func() { set(append(block(2), value[kvstore.BlockSize:]...)) },
		"swapped":    func() { set(stored(key(2), 7, good)) },
		"other seed": func() { set(stored(key(1), 8, good)) },
		"a list":     func() { server.Do("DEL", blockKey(key(1))); server.Do("RPUSH", blockKey(key(1)), "x") },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			ops := []*kvstore.Op{read(9), read(1), read(9)}
			ch.Do(bg(t), ops)
			want(t, ops[0].Err, kvstore.ErrAbsent)
			want(t, ops[1].Err, kvstore.ErrCorrupt)
			want(t, ops[2].Err, kvstore.ErrAbsent)
		})
	}
	// Corrupt or not, it can be overwritten.
	want(t, do1(t, ch, write(1, kvstore.Present, good)), nil)
	wantBlock(t, ch, 1, good)
}

// unproven is a placement without sentinels.
type unproven struct{}

func (unproven) Server(kvstore.Key) int        { return 0 }
func (unproven) Sentinel(int) (string, []byte) { return "", nil }

// openUnproven makes a store over one address, without sentinels.
func openUnproven(t testing.TB, cfg Config, addr string) *Store {
	t.Helper()
	cfg.Servers = []string{addr}
	s, err := Open(bg(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Join(unproven{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// openUnprovenVia makes a store whose data connections alone go to addr, which stands
// before the server.
func openUnprovenVia(t testing.TB, cfg Config, addr string, server *redistest.Server) *Store {
	t.Helper()
	s := openUnproven(t, cfg, server.Addr())
	var sa unix.Sockaddr = &unix.SockaddrUnix{Name: addr}
	(*s.nodes.Load())[0].sockaddr.Store(&sa)
	return s
}

// TestFenceClosesDuringOutage: a write that waits for a server must not be sent
// once its fence is closed.
func TestFenceClosesDuringOutage(t *testing.T) {
	server := redistest.Start(t)
	ch := channelOf(t, openUnproven(t, Config{}, server.Addr()))
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	server.Stop()
	var f kvstore.Fence
	f.OpenForEver()
	w := write(1, kvstore.Any, block(1))
	w.Fence = &f
	done := make(chan error)
	go func() {
		ch.Do(bg(t), []*kvstore.Op{w})
		done <- w.Err
	}()
	time.Sleep(50 * time.Millisecond)
	f.Close()
	server.Restart()
	want(t, <-done, kvstore.ErrFenced)
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
}

// TestNameMoves: a server whose name leads to another address is found there.
func TestNameMoves(t *testing.T) {
	server := redistest.Start(t, redistest.TCP())
	s := open(t, Config{}, server)
	// As if the name had led elsewhere when the store was opened: nobody listens
	// on port 1.
	var old unix.Sockaddr = &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}
	(*s.nodes.Load())[0].sockaddr.Store(&old)
	want(t, do1(t, channelOf(t, s), write(1, kvstore.Any, block(1))), nil)
}
