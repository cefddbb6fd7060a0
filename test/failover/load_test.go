package failover

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
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

// Short names of what the tests share.
var (
	bg        = wiretest.Background
	channelOf = wiretest.ChannelOf
	key       = wiretest.Key
	block     = wiretest.Block
	write     = wiretest.Write
	read      = wiretest.Read
	do1       = wiretest.Do1
	want      = wiretest.Want
	wantBlock = wiretest.WantBlock
)

const testLayer = wiretest.Layer

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
	wiretest.Join(t, s, storetest.Place(1).Prove("kvbfs:test:sentinel"))
	return s
}

func blockKey(k kvstore.Key) string {
	var b [kvstore.KeySize]byte
	k.Put(b[:])
	return string(b[:])
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
