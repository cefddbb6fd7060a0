package failover

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait for servers to miss each other.
	if err := flag.Set("test.parallel", "5"); err != nil {
		panic(err)
	}
	// go-redis looks each second whether a server is back, also for a second after Close.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

const testLayer = kvstore.LayerID(0xabcd1234)

func bg(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// openStore opens a store of one server, proven and joined.
func openStore(t testing.TB, cfg redis.Config) *redis.Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = t.Logf
	}
	s, err := redis.Open(bg(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	p := storetest.Place(1).Prove("kvbfs:test:sentinel")
	name, value := p.Sentinel(0)
	if err := s.Control().Add(bg(t), 0, name, value); err != nil && !errors.Is(err, kvstore.ErrExists) {
		t.Fatal(err)
	}
	want(t, s.Join(p), nil)
	return s
}

func channelOf(t testing.TB, s *redis.Store) kvstore.Channel {
	t.Helper()
	ch, err := s.Channel(bg(t))
	want(t, err, nil)
	t.Cleanup(func() { ch.Close() })
	return ch
}

func key(n uint64) kvstore.Key { return kvstore.Key{Layer: testLayer, Number: n} }

func blockKey(k kvstore.Key) string {
	var b [kvstore.KeySize]byte
	k.Put(b[:])
	return string(b[:])
}

// block is the content of a seed.
func block(seed uint64) []byte {
	b := make([]byte, kvstore.BlockSize)
	r := rand.NewPCG(seed, 1)
	for i := 0; i < len(b); i += 64 {
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
	if string(r.Data) != string(data) {
		t.Fatalf("block %d is not what was written", n)
	}
}

// logbook collects what a store logs.
type logbook struct {
	mu    sync.Mutex // guards lines
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

// load writes and reads blocks on channels of its own until it is stopped; each must
// read what it wrote last, and nothing may fail.
type load struct {
	stop   atomic.Bool
	writes atomic.Int64
	wg     sync.WaitGroup
}

func startLoad(t *testing.T, s *redis.Store, workers int, flush bool) *load {
	l := &load{}
	seed := storetest.Seed(t.Logf)
	for w := range uint64(workers) {
		ch, err := s.Channel(context.Background())
		want(t, err, nil)
		l.wg.Go(func() {
			defer ch.Close()
			rnd := rand.New(rand.NewPCG(seed, w))
			last := map[uint64]uint64{}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			for round := uint64(1); !l.stop.Load(); round++ {
				var ops []*kvstore.Op
				for i := range uint64(24) {
					n := (w<<20 | rnd.Uint64N(400)) &^ 31
					n += i // 24 of 32 neighbours, no two alike
					if last[n] != 0 && rnd.IntN(2) == 0 {
						ops = append(ops, read(n))
						continue
					}
					e := kvstore.Any
					if rnd.IntN(2) == 0 {
						e = kvstore.Absent
						if last[n] != 0 {
							e = kvstore.Present
						}
					}
					ops = append(ops, write(n, e, block(round)))
				}
				ch.Do(ctx, ops)
				for _, op := range ops {
					n := op.Key.Number
					if op.Err != nil {
						t.Errorf("worker %d, round %d: %v", w, round, op.Err)
						return
					}
					if op.Code == kvstore.Write {
						last[n] = round
						l.writes.Add(1)
					} else if string(op.Data) != string(block(last[n])) {
						t.Errorf("worker %d, round %d: block %d is not what was written in round %d", w, round, n, last[n])
						return
					}
				}
				if flush && round%16 == 0 {
					if err := ch.Flush(ctx, testLayer); err != nil {
						t.Errorf("worker %d, round %d: %v", w, round, err)
						return
					}
				}
			}
		})
	}
	return l
}

// progress waits until more has been written.
func (l *load) progress(t *testing.T, n int64) {
	t.Helper()
	from := l.writes.Load()
	redistest.Eventually(t, "the load goes on", func() bool { return t.Failed() || l.writes.Load() >= from+n })
}

func (l *load) end(t *testing.T) {
	l.stop.Store(true)
	l.wg.Wait()
	t.Logf("%d writes", l.writes.Load())
}
