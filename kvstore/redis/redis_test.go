package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestMain(m *testing.M) {
	// go-redis looks each second whether a server is back, also for a second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

// spread places keys over n servers, with sentinels.
type spread struct{ n int }

func (p spread) Server(k kvstore.Key) int { return int(k.Number>>5) % p.n }
func (p spread) Sentinel(i int) (string, []byte) {
	return "kvbfs:test:sentinel", fmt.Appendf(nil, "sentinel of server %d", i)
}

const testLayer = kvstore.LayerID(0xabcd1234)

func bg(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// open makes a joined store over running servers.
func open(t testing.TB, cfg Config, servers ...*redistest.Server) *Store {
	t.Helper()
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, s.Addr())
	}
	if cfg.Log == nil {
		cfg.Log = func(format string, args ...any) { t.Logf(format, args...) }
	}
	s, err := Open(bg(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	p := spread{len(cfg.Servers)}
	prove(t, s, p)
	if err := s.Join(p); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateLayer(bg(t), testLayer); err != nil && !errors.Is(err, kvstore.ErrExists) {
		t.Fatal(err)
	}
	return s
}

// prove adds the sentinels of a placement.
func prove(t testing.TB, s *Store, p kvstore.Placement) {
	t.Helper()
	for i := range s.Servers() {
		name, value := p.Sentinel(i)
		if err := s.Control().Add(bg(t), i, name, value); err != nil && !errors.Is(err, kvstore.ErrExists) {
			t.Fatal(err)
		}
	}
}

// openStore opens a store of any kind, proven and joined.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = t.Logf
	}
	s, err := Open(bg(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	p := spread{1}
	prove(t, s, p)
	want(t, s.Join(p), nil)
	return s
}

func channelOf(t testing.TB, s *Store) kvstore.Channel {
	t.Helper()
	ch, err := s.Channel(bg(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ch.Close() })
	return ch
}

func key(n uint64) kvstore.Key { return kvstore.Key{Layer: testLayer, Number: n} }

func block(seed uint64) []byte {
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

func write(n uint64, e kvstore.Expect, data []byte) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Expect: e, Key: key(n), Data: data, Seed: 7}
}

func read(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Read, Key: key(n), Data: make([]byte, kvstore.BlockSize), Seed: 7}
}

func discard(n uint64) *kvstore.Op { return &kvstore.Op{Code: kvstore.Discard, Key: key(n)} }

// do1 executes one operation.
func do1(t testing.TB, ch kvstore.Channel, op *kvstore.Op) error {
	t.Helper()
	ch.Do(bg(t), []*kvstore.Op{op})
	return op.Err
}

func want(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) || (want == nil) != (got == nil) {
		t.Fatalf("got %v, want %v", got, want)
	}
}

func wantBlock(t testing.TB, ch kvstore.Channel, n uint64, data []byte) {
	t.Helper()
	r := read(n)
	want(t, do1(t, ch, r), nil)
	if !bytes.Equal(r.Data, data) {
		t.Fatalf("block %d is not what was written", n)
	}
}

// rigs are the ways in which servers are reached.
var rigs = []struct {
	name    string
	servers int
	cfg     Config
	opts    []redistest.Option
}{
	{"unix", 1, Config{}, nil},
	{"tcp", 1, Config{}, []redistest.Option{redistest.TCP()}},
	{"unix x3", 3, Config{}, nil},
	{"tcp x3, 2 connections", 3, Config{Connections: 2}, []redistest.Option{redistest.TCP()}},
}

func eachRig(t *testing.T, f func(*testing.T, *Store, []*redistest.Server)) {
	for i, rig := range rigs {
		if storetest.RaceEnabled && i > 0 && i < len(rigs)-1 {
			continue // the first and the last one have all that may race
		}
		t.Run(rig.name, func(t *testing.T) {
			var servers []*redistest.Server
			for range rig.servers {
				servers = append(servers, redistest.Start(t, rig.opts...))
			}
			f(t, open(t, rig.cfg, servers...), servers)
		})
	}
}

func TestExpectations(t *testing.T) {
	eachRig(t, func(t *testing.T, s *Store, _ []*redistest.Server) {
		ch := channelOf(t, s)
		a, b := block(1), block(2)
		want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
		want(t, do1(t, ch, write(1, kvstore.Present, a)), kvstore.ErrAbsent)
		want(t, do1(t, ch, write(1, kvstore.Absent, a)), nil)
		want(t, do1(t, ch, write(1, kvstore.Absent, b)), kvstore.ErrExists)
		wantBlock(t, ch, 1, a)
		want(t, do1(t, ch, write(1, kvstore.Present, b)), nil)
		wantBlock(t, ch, 1, b)

		r := read(1)
		r.Versioned = true
		want(t, do1(t, ch, r), nil)
		w := write(1, kvstore.Same, a)
		w.Version = r.Version
		want(t, do1(t, ch, w), nil)
		wantBlock(t, ch, 1, a)
		w = write(1, kvstore.Same, b)
		w.Version = r.Version
		want(t, do1(t, ch, w), kvstore.ErrConflict)
		wantBlock(t, ch, 1, a)
		w = write(2, kvstore.Same, b)
		w.Version = 5
		want(t, do1(t, ch, w), kvstore.ErrAbsent)

		want(t, do1(t, ch, write(3, kvstore.Any, a)), nil)
		want(t, do1(t, ch, write(3, kvstore.Any, b)), nil)
		wantBlock(t, ch, 3, b)
		want(t, do1(t, ch, discard(3)), nil)
		want(t, do1(t, ch, discard(3)), nil)
		want(t, do1(t, ch, read(3)), kvstore.ErrAbsent)
		want(t, ch.Flush(bg(t), testLayer), nil)
	})
}

func TestBatchesAgainstModel(t *testing.T) {
	eachRig(t, func(t *testing.T, s *Store, _ []*redistest.Server) {
		const blocks = 300
		seed := storetest.Seed(t.Logf)
		rnd := rand.New(rand.NewPCG(seed, 0))
		ch := channelOf(t, s)
		model := map[uint64][]byte{}
		for range 60 {
			var ops []*kvstore.Op
			for _, n := range rnd.Perm(blocks)[:1+rnd.IntN(blocks)] {
				n := uint64(n)
				switch rnd.IntN(5) {
				case 0, 1:
					e := kvstore.Any
					if rnd.IntN(2) == 0 {
						e = kvstore.Absent
						if model[n] != nil {
							e = kvstore.Present
						}
					}
					data := block(rnd.Uint64())
					ops = append(ops, write(n, e, data))
				case 2:
					ops = append(ops, discard(n))
				default:
					ops = append(ops, read(n))
				}
			}
			ch.Do(bg(t), ops)
			for _, op := range ops {
				n := op.Key.Number
				if op.Code == kvstore.Read && model[n] == nil {
					want(t, op.Err, kvstore.ErrAbsent)
					continue
				}
				want(t, op.Err, nil)
				switch op.Code {
				case kvstore.Write:
					model[n] = op.Data
				case kvstore.Discard:
					delete(model, n)
				case kvstore.Read:
					if !bytes.Equal(op.Data, model[n]) {
						t.Fatalf("block %d differs from the model", n)
					}
				}
			}
		}
	})
}

// TestLargeMixedBatch sends 4 MiB of writes and asks for 4 MiB at a time: neither
// side may wait for the other for ever.
func TestLargeMixedBatch(t *testing.T) {
	eachRig(t, func(t *testing.T, s *Store, _ []*redistest.Server) {
		ch := channelOf(t, s)
		var ops []*kvstore.Op
		for n := range uint64(kvstore.MaxBatch) {
			ops = append(ops, write(n, kvstore.Any, block(n)))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
		for n := range ops {
			if n%2 == 0 {
				ops[n] = read(uint64(n))
			} else {
				ops[n] = write(uint64(n), kvstore.Present, block(uint64(n)+5000))
			}
		}
		ch.Do(bg(t), ops)
		for n, op := range ops {
			want(t, op.Err, nil)
			if n%2 == 0 && !bytes.Equal(op.Data, block(uint64(n))) {
				t.Fatalf("block %d differs", n)
			}
		}
	})
}

func TestInvalid(t *testing.T) {
	s := open(t, Config{}, redistest.Start(t))
	ch := channelOf(t, s)
	good := write(1, kvstore.Any, block(1))
	bad := []*kvstore.Op{
		{}, {Code: 9}, {Code: kvstore.Read, Data: make([]byte, 5)},
		{Code: kvstore.Write, Expect: 9, Data: block(1)},
		{Code: kvstore.Read, Data: block(1), Key: kvstore.Key{Number: kvstore.MaxNumber + 1}},
	}
	ch.Do(bg(t), append(bad, good))
	for i, op := range bad {
		if !errors.Is(op.Err, kvstore.ErrInvalid) {
			t.Errorf("op %d: %v", i, op.Err)
		}
	}
	want(t, good.Err, nil)
	wide := discard(1)
	wide.Count = 2
	want(t, do1(t, ch, wide), kvstore.ErrUnsupported)
	many := make([]*kvstore.Op, kvstore.MaxBatch+1)
	for i := range many {
		many[i] = read(uint64(i))
	}
	ch.Do(bg(t), many)
	want(t, many[0].Err, kvstore.ErrInvalid)
}

func TestFence(t *testing.T) {
	s := open(t, Config{}, redistest.Start(t))
	ch := channelOf(t, s)
	var f kvstore.Fence
	w := write(1, kvstore.Any, block(1))
	w.Fence = &f
	want(t, do1(t, ch, w), kvstore.ErrFenced)
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	f.OpenForEver()
	want(t, do1(t, ch, w), nil)
	d := discard(1)
	d.Fence = &f
	f.Close()
	want(t, do1(t, ch, d), kvstore.ErrFenced)
	wantBlock(t, ch, 1, block(1))
}

func TestParallelChannels(t *testing.T) {
	eachRig(t, func(t *testing.T, s *Store, _ []*redistest.Server) {
		var wg sync.WaitGroup
		for g := range uint64(6) {
			ch := channelOf(t, s)
			wg.Go(func() {
				rounds := uint64(20)
				if storetest.RaceEnabled {
					rounds = 6
				}
				for round := range rounds {
					var ops []*kvstore.Op
					for i := range uint64(40) {
						ops = append(ops, write(g*1000+i, kvstore.Any, block(round*100+i)))
					}
					ch.Do(bg(t), ops)
					for i := range uint64(40) {
						r := read(g*1000 + i)
						ch.Do(bg(t), []*kvstore.Op{r})
						if r.Err != nil || !bytes.Equal(r.Data, block(round*100+i)) || ops[i].Err != nil {
							t.Errorf("channel %d block %d: %v, %v", g, i, ops[i].Err, r.Err)
							return
						}
					}
					if err := ch.Flush(bg(t), testLayer); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestControl(t *testing.T) {
	eachRig(t, func(t *testing.T, s *Store, _ []*redistest.Server) {
		c, ctx, last := s.Control(), bg(t), len(s.Servers())-1
		for _, name := range []string{"pool:x", ":x", "x", "::x", "a%20:b"} {
			_, err := c.Get(ctx, last, name)
			want(t, err, kvstore.ErrAbsent)
			want(t, c.Swap(ctx, last, name, kvstore.Record{Version: 3}, []byte("v")), kvstore.ErrAbsent)
			want(t, c.Add(ctx, last, name, []byte("one")), nil)
			want(t, c.Add(ctx, last, name, []byte("two")), kvstore.ErrExists)
			r, err := c.Get(ctx, last, name)
			want(t, err, nil)
			if string(r.Value) != "one" {
				t.Fatalf("got %q", r.Value)
			}
			want(t, c.Swap(ctx, last, name, r, bytes.Repeat([]byte("x"), kvstore.MaxRecord)), nil)
			want(t, c.Swap(ctx, last, name, r, []byte("late")), kvstore.ErrConflict)
			r, err = c.Get(ctx, last, name)
			want(t, err, nil)
			if len(r.Value) != kvstore.MaxRecord {
				t.Fatalf("got %d bytes", len(r.Value))
			}
			want(t, c.Delete(ctx, last, name), nil)
			want(t, c.Delete(ctx, last, name), nil)
		}
		want(t, c.Add(ctx, last, "with space:", nil), kvstore.ErrInvalid)
		_, err := c.Get(ctx, 99, "pool:x")
		want(t, err, kvstore.ErrInvalid)
		want(t, s.CreateLayer(ctx, testLayer), kvstore.ErrExists)
	})
}
