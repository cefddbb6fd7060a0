package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
)

// rawStore is the store's own client as kvbfs's workers use it: a channel per
// worker, on a thread of its own, one batch after the other. It has a layer of its
// own, as large as the volumes that are measured, so that the servers' caches help
// it as little as them.
type rawStore struct {
	store  kvstore.Store
	layer  kvstore.LayerID
	blocks uint64
	seed   uint32
}

// spread places runs of blocks on servers as a pool does: 128 KiB stay together.
type spread struct{ servers int }

func (p spread) Server(k kvstore.Key) int        { return int(k.Number>>5) % p.servers }
func (spread) Sentinel(int) (_ string, _ []byte) { return "", nil }

// openRaw opens the servers of a URL and stores all blocks once.
func openRaw(ctx context.Context, url string, bytes int64) (*rawStore, error) {
	st, err := stack.OpenStore(ctx, stack.Config{URL: url})
	if err != nil {
		return nil, err
	}
	r := &rawStore{store: st, blocks: uint64(bytes / kvstore.BlockSize), seed: rand.Uint32()}
	if err := st.Join(spread{len(st.Servers())}); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	for {
		r.layer = kvstore.LayerID(rand.Uint32())
		if err = st.CreateLayer(ctx, r.layer); !errors.Is(err, kvstore.ErrExists) {
			break
		}
	}
	if err == nil {
		err = r.all(ctx, kvstore.Write)
	}
	if err != nil {
		return nil, errors.Join(err, r.close(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// close removes the blocks and closes the store. It is bounded in time.
func (r *rawStore) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return errors.Join(r.all(ctx, kvstore.Discard), r.store.RemoveLayer(ctx, r.layer), r.store.Close())
}

// all does one operation on every block.
func (r *rawStore) all(ctx context.Context, code kvstore.Code) error {
	ch, err := r.store.Channel(ctx)
	if err != nil {
		return err
	}
	defer ch.Close()
	ops := r.batch(code, kvstore.Any, 128)
	for n := uint64(0); n < r.blocks && ctx.Err() == nil; n += uint64(len(ops)) {
		ops = ops[:min(uint64(len(ops)), r.blocks-n)]
		for i, op := range ops {
			op.Key.Number = n + uint64(i)
		}
		ch.Do(ctx, ops)
		if err := firstError(ops); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// batch makes operations with random data of their own.
func (r *rawStore) batch(code kvstore.Code, expect kvstore.Expect, n int) []*kvstore.Op {
	ops := make([]*kvstore.Op, n)
	fill := rand.NewChaCha8([32]byte{byte(n)})
	for i := range ops {
		data := make([]byte, kvstore.BlockSize)
		_, _ = fill.Read(data)
		ops[i] = &kvstore.Op{Code: code, Expect: expect, Seed: r.seed, Key: kvstore.Key{Layer: r.layer}, Data: data}
	}
	return ops
}

func firstError(ops []*kvstore.Op) error {
	for _, op := range ops {
		if op.Err != nil {
			return op.Err
		}
	}
	return nil
}

// measure does a work for a while. Its latencies are those of a batch. It returns
// the number of blocks too.
func (r *rawStore) measure(ctx context.Context, w result.Work, d time.Duration) (result.Sample, int64, error) {
	code, expect := kvstore.Read, kvstore.Any
	if w.Kind == "set" {
		// Overwrites of blocks known to be there, as a volume's are.
		code, expect = kvstore.Write, kvstore.Present
	}
	return inParallel(ctx, w.Jobs, d, func(ctx context.Context, worker int, end time.Time, took *[]time.Duration) (int64, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		ch, err := r.store.Channel(ctx)
		if err != nil {
			return 0, err
		}
		defer ch.Close()
		ops := r.batch(code, expect, w.Depth)
		place := rand.New(rand.NewPCG(uint64(worker), uint64(end.UnixNano())))
		var done int64
		// At least one: on a loaded machine the time may be over before it begins.
		for begin := time.Now(); (done == 0 || begin.Before(end)) && ctx.Err() == nil; {
			r.choose(ops, place, w.Run)
			ch.Do(ctx, ops)
			if err := firstError(ops); err != nil {
				return done, errors.Join(ctx.Err(), err)
			}
			now := time.Now()
			*took = append(*took, now.Sub(begin))
			done += int64(len(ops))
			begin = now
		}
		return done, ctx.Err()
	})
}

// rawShare is how many blocks of a large write a volume has under way (maxWriteShare
// of package volume).
const rawShare = 16

// besideWriter measures single reads while another worker writes runs of as many
// blocks as a volume has under way of a large request. The writer's bytes per second
// are returned too.
func (r *rawStore) besideWriter(ctx context.Context, d time.Duration) (result.Sample, int64, float64, error) {
	var wrote result.Sample
	var werr error
	var wg sync.WaitGroup
	wg.Go(func() {
		wrote, _, werr = r.measure(ctx, result.Work{Kind: "set", Block: block4k, Depth: rawShare, Jobs: 1, Run: rawShare}, d)
	})
	s, n, err := r.measure(ctx, result.Work{Kind: "get", Block: block4k, Depth: 1, Jobs: 1}, d)
	wg.Wait()
	return s, n, wrote.Bytes, errors.Join(err, werr)
}

// choose picks blocks at random, or a random run. A batch must not hold two writes
// of one block, so each operation takes from a part of its own.
func (r *rawStore) choose(ops []*kvstore.Op, place *rand.Rand, run int) {
	n := uint64(len(ops))
	if run > 0 {
		first := place.Uint64N(r.blocks/n) * n
		for i, op := range ops {
			op.Key.Number = first + uint64(i)
		}
		return
	}
	for i, op := range ops {
		op.Key.Number = place.Uint64N(r.blocks/n)*n + uint64(i)
	}
}

// inParallel runs workers until an end and sums what they did.
func inParallel(ctx context.Context, n int, d time.Duration,
	work func(ctx context.Context, worker int, end time.Time, took *[]time.Duration) (int64, error)) (result.Sample, int64, error) {
	begin := time.Now()
	took := make([][]time.Duration, n)
	done := make([]int64, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { done[i], errs[i] = work(ctx, i, begin.Add(d), &took[i]) })
	}
	wg.Wait()
	lasted := time.Since(begin).Seconds()
	if err := errors.Join(errs...); err != nil {
		if ctx.Err() != nil {
			return result.Sample{}, 0, ctx.Err()
		}
		return result.Sample{}, 0, err
	}
	var sum int64
	for _, n := range done {
		sum += n
	}
	if sum == 0 {
		return result.Sample{}, 0, errors.New("nothing was done in time")
	}
	s := latencies(slices.Concat(took...))
	s.IOPS = float64(sum) / lasted
	s.Bytes = s.IOPS * kvstore.BlockSize
	return s, sum, nil
}

// latencies fills in the percentiles of a sample. It sorts took.
func latencies(took []time.Duration) result.Sample {
	if len(took) == 0 {
		return result.Sample{}
	}
	slices.Sort(took)
	at := func(p float64) float64 {
		return float64(took[min(int(p*float64(len(took))), len(took)-1)].Nanoseconds()) / 1e3
	}
	var sum time.Duration
	for _, d := range took {
		sum += d
	}
	return result.Sample{
		MeanUS: float64(sum.Nanoseconds()) / float64(len(took)) / 1e3,
		P50US:  at(0.5), P99US: at(0.99), P999US: at(0.999),
	}
}

// hasServers says whether a URL names servers, which raw clients can use.
func hasServers(url string) bool { return isMemcached(url) || isRedis(url) }

// isRedis says whether redis-benchmark may be able to.
func isRedis(url string) bool { return strings.HasPrefix(url, "redis") }

// isMemcached says whether the plain client can use them.
func isMemcached(url string) bool { return strings.HasPrefix(url, "memcached") }

// rawError says what failed.
func rawError(w result.Work, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("raw store, %s: %w", w.Name(), err)
}
