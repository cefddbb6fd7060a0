package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

// plainClient is the library that kvbfs itself uses for its control records, as a
// program without pipelining would use it for data: what the raw figures are to be
// compared with.
type plainClient struct {
	client *memcache.Client
	prefix string
	blocks int
}

// plainBlocks is how many blocks it has: 16 MiB, which flatters it.
const plainBlocks = 4096

func openPlain(url string) (*plainClient, error) {
	cfg, _, _, err := memcached.ParseURL(url)
	if err != nil {
		return nil, err
	}
	p := &plainClient{client: memcache.New(cfg.Servers...), prefix: fmt.Sprintf("p%08x", rand.Uint32()), blocks: plainBlocks}
	p.client.MaxIdleConns = 2 * plainWorkers
	p.client.Timeout = 10 * time.Second
	for i := range p.blocks {
		if err := p.client.Set(&memcache.Item{Key: p.key(i), Value: make([]byte, kvstore.BlockSize)}); err != nil {
			return nil, errors.Join(fmt.Errorf("plain client: %w", err), p.close())
		}
	}
	return p, nil
}

// key is as long as a block's.
func (p *plainClient) key(i int) string { return fmt.Sprintf("%s%07d", p.prefix, i) }

func (p *plainClient) close() error {
	for i := range p.blocks {
		if err := p.client.Delete(p.key(i)); err != nil && !errors.Is(err, memcache.ErrCacheMiss) {
			return errors.Join(err, p.client.Close())
		}
	}
	return p.client.Close()
}

func (p *plainClient) measure(ctx context.Context, w result.Work, d time.Duration) (result.Sample, int64, error) {
	return inParallel(ctx, w.Jobs, d, func(ctx context.Context, worker int, end time.Time, took *[]time.Duration) (int64, error) {
		place := rand.New(rand.NewPCG(uint64(worker), uint64(end.UnixNano())))
		data := make([]byte, kvstore.BlockSize)
		var done int64
		for begin := time.Now(); (done == 0 || begin.Before(end)) && ctx.Err() == nil; done++ {
			key := p.key(place.IntN(p.blocks))
			var err error
			if w.Kind == "get" {
				_, err = p.client.Get(key)
			} else {
				err = p.client.Set(&memcache.Item{Key: key, Value: data})
			}
			if err != nil {
				return done, err
			}
			now := time.Now()
			*took = append(*took, now.Sub(begin))
			begin = now
		}
		return done, ctx.Err()
	})
}
