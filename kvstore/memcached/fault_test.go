package memcached

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
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
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
	for name, opts := range map[string][]memcachedtest.Option{"unix": nil, "tcp": {memcachedtest.TCP()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := memcachedtest.Start(t, opts...)
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
	server := memcachedtest.Start(t)
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
	server := memcachedtest.Start(t, memcachedtest.TCP())
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
	for _, opts := range [][]memcachedtest.Option{nil, {memcachedtest.TCP()}} {
		good, bad := memcachedtest.Start(t, opts...), memcachedtest.Start(t, opts...)
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

// TestFlushFindsFlushAll: a neighbour's flush_all breaks no connection.
func TestFlushFindsFlushAll(t *testing.T) {
	server := memcachedtest.Start(t, memcachedtest.Bare())
	s := open(t, Config{}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	want(t, do1(t, ch, write(1, kvstore.Present, block(2))), nil)
	if err := s.servers[0].client.DeleteAll(); err != nil {
		t.Fatal(err)
	}
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	want(t, other.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

func TestCorruptBlocks(t *testing.T) {
	server := memcachedtest.Start(t)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	set := func(n uint64, flags uint32, data []byte) {
		t.Helper()
		cmd := fmt.Sprintf("set %s %d 0 %d\r\n%s\r\n", keyText(key(n)), flags, len(data), data)
		err := s.servers[0].talk(bg(t), []byte(cmd), func(in *lineReader) error { _, err := in.line(); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	good := block(1)
	flags := blockFlags(7, key(1), good)
	for name, c := range map[string]struct {
		spoil  func()
		length int  // that the error tells
		block  bool // with a checksum
		origin bool // that of block 2
	}{
		"short":      {func() { set(1, flags, good[:4000]) }, 4000, false, false},
		"empty":      {func() { set(1, flags, nil) }, 0, false, false},
		"long":       {func() { set(1, flags, append(block(1), 1)) }, 4097, false, false},
		"very long":  {func() { set(1, flags, make([]byte, 900<<10)) }, 900 << 10, false, false},
		"no flags":   {func() { set(1, 0, good) }, 4096, false, false},
		"other flag": {func() { set(1, flags^1, good) }, 4096, true, false},
		"other data": {func() { set(1, flags, block(2)) }, 4096, true, false},
		"swapped":    {func() { set(1, blockFlags(7, key(2), good), good) }, 4096, true, true},
		"other seed": {func() { set(1, blockFlags(8, key(1), good), good) }, 4096, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.spoil()
			alone := []*kvstore.Op{read(1)}
			ch.Do(bg(t), alone)
			ops := []*kvstore.Op{read(9), read(1), read(9)}
			ch.Do(bg(t), ops)
			want(t, ops[0].Err, kvstore.ErrAbsent)
			want(t, ops[2].Err, kvstore.ErrAbsent)
			for _, op := range []*kvstore.Op{alone[0], ops[1]} {
				want(t, op.Err, kvstore.ErrCorrupt)
				found := new(kvstore.CorruptError)
				if !errors.As(op.Err, &found) || found.Length != c.length || found.Mask != 0 != c.block {
					t.Errorf("%v (%+v)", op.Err, found)
				}
				if n, ok := found.Origin(7, key(2).Layer, key(2).Kind, 1000, op.Data); ok != c.origin || ok && n != key(2).Number {
					t.Errorf("origin: %d, %v", n, ok)
				}
			}
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

// TestFenceClosesDuringOutage: a write that waits for a server must not be sent
// once its fence is closed.
func TestFenceClosesDuringOutage(t *testing.T) {
	server := memcachedtest.Start(t)
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
	server := memcachedtest.Start(t, memcachedtest.TCP())
	s := open(t, Config{}, server)
	// As if the name had led elsewhere when the store was opened: nobody listens
	// on port 1.
	var old unix.Sockaddr = &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}
	s.servers[0].sockaddr.Store(&old)
	want(t, do1(t, channelOf(t, s), write(1, kvstore.Any, block(1))), nil)
}
