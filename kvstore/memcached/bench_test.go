package memcached

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// BenchmarkDo is the raw speed of channels: worker goroutines, each with its own.
func BenchmarkDo(b *testing.B) { wiretest.BenchmarkDo(b, rig) }

// BenchmarkTLS is what TLS costs: the same server program, with it and without.
func BenchmarkTLS(b *testing.B) {
	for _, how := range []string{"tcp", "tls"} {
		opts, cfg := []memcachedtest.Option{memcachedtest.TCP()}, Config{}
		if how == "tls" {
			certs := memcachedtest.NewCerts(b)
			opts, cfg = append(opts, memcachedtest.TLS(certs)), Config{TLS: certs.Config(b, true)}
		}
		s := open(b, cfg, memcachedtest.Start(b, opts...))
		wiretest.Prepare(b, channelOf(b, s))
		for _, code := range []kvstore.Code{kvstore.Read, kvstore.Write} {
			for _, depth := range []int{1, 32} {
				verb := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write"}[code]
				b.Run(fmt.Sprintf("%s/%s/batch%d", how, verb, depth), func(b *testing.B) { wiretest.BenchDo(b, s, code, depth, 2) })
			}
		}
	}
}

// BenchmarkGomemcache is the same work through the library of the control plane.
func BenchmarkGomemcache(b *testing.B) {
	server := memcachedtest.Start(b)
	s := open(b, Config{}, server)
	wiretest.Prepare(b, channelOf(b, s))
	client := memcache.New(server.Addr())
	client.MaxIdleConns = 32
	b.Cleanup(func() { client.Close() })
	for _, verb := range []string{"read", "write", "readmulti32"} {
		for _, workers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/workers%d", verb, workers), func(b *testing.B) {
				b.SetBytes(kvstore.BlockSize)
				b.ReportAllocs()
				var wg sync.WaitGroup
				data := block(1)
				for w := range workers {
					wg.Go(func() {
						for i := w; i < b.N; i += workers {
							var err error
							k := keyText(key(uint64(i) % wiretest.BenchBlocks))
							switch verb {
							case "read":
								_, err = client.Get(k)
							case "write":
								err = client.Replace(&memcache.Item{Key: k, Value: data})
							default:
								if i/workers%32 != 0 {
									continue
								}
								var keys []string
								for j := range 32 {
									keys = append(keys, keyText(key(uint64(i+j)%wiretest.BenchBlocks)))
								}
								_, err = client.GetMulti(keys)
							}
							if err != nil && !errors.Is(err, memcache.ErrCacheMiss) {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1000, "kops/s")
			})
		}
	}
}

// TestNoAllocations: the way of success allocates nothing.
func TestNoAllocations(t *testing.T) {
	s := open(t, Config{Connections: 2}, memcachedtest.Start(t), memcachedtest.Start(t))
	ch := channelOf(t, s)
	ctx := context.Background()
	var ops []*kvstore.Op
	for n := range uint64(100) {
		ops = append(ops, write(n, kvstore.Any, block(n)), read(n+1000), discard(n+2000))
	}
	for n := range uint64(100) {
		want(t, do1(t, ch, write(n+1000, kvstore.Any, block(n))), nil)
	}
	got := testing.AllocsPerRun(50, func() {
		ch.Do(ctx, ops)
	})
	for _, op := range ops {
		want(t, op.Err, nil)
	}
	if got > 0 {
		t.Errorf("%v allocations per batch of %d", got, len(ops))
	}
}
