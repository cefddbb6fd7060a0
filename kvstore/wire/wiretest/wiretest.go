// Package wiretest tests what stores that speak to servers over sockets have in
// common, besides the contract, which is storetest's: outages, cut and slow replies,
// writes that arrive late, servers that come back empty. A store brings a [Rig], and a
// test of its own name for each function here.
package wiretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Server is a private server process of a test.
type Server interface {
	// Network is "tcp" or "unix".
	Network() string
	// Addr is host:port, or a path.
	Addr() string
	// Stop kills it; Restart brings it back on the same address, empty.
	Stop()
	Restart()
	// Pause stops all its threads (SIGSTOP), Resume lets them go on.
	Pause()
	Resume()
}

// Options are those of a store's Config that the tests set.
type Options struct {
	Connections int           // per channel and server; 0: 1
	TryTimeout  time.Duration // 0: the store's default
	Log         func(format string, args ...any)
}

// Rig is how a store and its servers are made.
type Rig struct {
	// Start starts a server that ends with the test.
	Start func(t testing.TB, tcp bool) Server
	// Open opens a store of these servers, which is not joined yet and ends with the
	// test.
	Open func(t testing.TB, o Options, addrs []string) kvstore.Store
	// Via is Open of one server of which the data connections alone go to addr, a
	// unix socket that stands before it.
	Via func(t testing.TB, o Options, addr string, server Server) kvstore.Store
	// Move lets dials of a store's first server go to another address.
	Move func(s kvstore.Store, to unix.Sockaddr)
}

// Layer is the one that all tests use.
const Layer = kvstore.LayerID(0xabcd1234)

// Spread places runs of 32 blocks on n servers in turn, with sentinels.
type Spread struct{ N int }

// Server implements kvstore.Placement.
func (p Spread) Server(k kvstore.Key) int { return int(k.Number>>5) % p.N }

// Sentinel implements kvstore.Placement.
func (p Spread) Sentinel(i int) (string, []byte) {
	return "kvbfs:test:sentinel", fmt.Appendf(nil, "sentinel of server %d", i)
}

// Join adds the sentinels of a placement that are not there yet, joins the store to it,
// and claims the layer.
func Join(t testing.TB, s kvstore.Store, p kvstore.Placement) {
	t.Helper()
	for i := range s.Servers() {
		name, value := p.Sentinel(i)
		if name == "" {
			continue
		}
		if err := s.Control().Add(Background(t), i, name, value); err != nil && !errors.Is(err, kvstore.ErrExists) {
			t.Fatal(err)
		}
	}
	Want(t, s.Join(p), nil)
	if err := s.CreateLayer(Background(t), Layer); err != nil && !errors.Is(err, kvstore.ErrExists) {
		t.Fatal(err)
	}
}

// open makes a joined store of running servers.
func (rig Rig) open(t testing.TB, o Options, servers ...Server) kvstore.Store {
	t.Helper()
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr())
	}
	if o.Log == nil {
		o.Log = t.Logf
	}
	s := rig.Open(t, o, addrs)
	Join(t, s, Spread{len(addrs)})
	return s
}

// unproven is open without sentinels.
func (rig Rig) unproven(t testing.TB, server Server) kvstore.Store {
	t.Helper()
	s := rig.Open(t, Options{Log: t.Logf}, []string{server.Addr()})
	Want(t, s.Join(Unproven{}), nil)
	return s
}

// via is unproven through what listens on addr.
func (rig Rig) via(t testing.TB, addr string, server Server) kvstore.Store {
	t.Helper()
	s := rig.Via(t, Options{Log: t.Logf}, addr, server)
	Want(t, s.Join(Unproven{}), nil)
	return s
}

// Unproven is a placement of one server without a sentinel.
type Unproven struct{}

// Server implements kvstore.Placement.
func (Unproven) Server(kvstore.Key) int { return 0 }

// Sentinel implements kvstore.Placement.
func (Unproven) Sentinel(int) (string, []byte) { return "", nil }

// each runs a test for each way in which servers are reached.
func (rig Rig) each(t *testing.T, f func(*testing.T, kvstore.Store)) {
	ways := []struct {
		name    string
		servers int
		tcp     bool
		options Options
	}{
		{"unix", 1, false, Options{}},
		{"tcp", 1, true, Options{}},
		{"unix x3", 3, false, Options{}},
		{"tcp x3, 2 connections", 3, true, Options{Connections: 2}},
	}
	for i, w := range ways {
		if storetest.RaceEnabled && i > 0 && i < len(ways)-1 {
			continue // the first and the last one have all that may race
		}
		t.Run(w.name, func(t *testing.T) {
			var servers []Server
			for range w.servers {
				servers = append(servers, rig.Start(t, w.tcp))
			}
			f(t, rig.open(t, w.options, servers...))
		})
	}
}

// Background is a context that ends with the test, or before a test that hangs runs
// into its limit.
func Background(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// ChannelOf opens a channel that is closed with the test.
func ChannelOf(t testing.TB, s kvstore.Store) kvstore.Channel {
	t.Helper()
	ch, err := s.Channel(Background(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ch.Close() })
	return ch
}

// Key is that of block n.
func Key(n uint64) kvstore.Key { return kvstore.Key{Layer: Layer, Number: n} }

// Block is the content of a seed.
func Block(seed uint64) []byte {
	b := make([]byte, kvstore.BlockSize)
	r := rand.NewPCG(seed, 1)
	for i := 0; i < len(b); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// Write is an operation.
func Write(n uint64, e kvstore.Expect, data []byte) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Expect: e, Key: Key(n), Data: data, Seed: 7}
}

// Read is an operation, with a buffer of its own.
func Read(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Read, Key: Key(n), Data: make([]byte, kvstore.BlockSize), Seed: 7}
}

// Discard is an operation.
func Discard(n uint64) *kvstore.Op { return &kvstore.Op{Code: kvstore.Discard, Key: Key(n)} }

// Do1 executes one operation.
func Do1(t testing.TB, ch kvstore.Channel, op *kvstore.Op) error {
	t.Helper()
	ch.Do(Background(t), []*kvstore.Op{op})
	return op.Err
}

// Want compares errors by errors.Is.
func Want(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || (want == nil) != (got == nil) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

// WantBlock reads a block and compares.
func WantBlock(t testing.TB, ch kvstore.Channel, n uint64, data []byte) {
	t.Helper()
	r := Read(n)
	Want(t, Do1(t, ch, r), nil)
	if !bytes.Equal(r.Data, data) {
		t.Fatalf("block %d is not what was written", n)
	}
}

// Logbook collects what a store logs. Safe for concurrent use.
type Logbook struct {
	mu    sync.Mutex // guards lines
	lines []string
}

// Log is for Options.
func (l *Logbook) Log(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

// Count returns how many lines contain part.
func (l *Logbook) Count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

// Lines returns a copy of all.
func (l *Logbook) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}
