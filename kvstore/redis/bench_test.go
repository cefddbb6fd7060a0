package redis

import (
	"context"
	"fmt"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// BenchmarkDo is the raw speed of channels: worker goroutines, each with its own.
func BenchmarkDo(b *testing.B) { wiretest.BenchmarkDo(b, rig) }

// BenchmarkGoRedis is the same work through the library of the control plane.
func BenchmarkGoRedis(b *testing.B) {
	server := redistest.Start(b)
	s := open(b, Config{}, server)
	wiretest.Prepare(b, channelOf(b, s))
	ctx := context.Background()
	buf := make([]byte, valueSize)
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("read/batch%d", depth), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; i < b.N; i += depth {
				_, err := server.Client.Pipelined(ctx, func(p goredis.Pipeliner) error {
					for j := range depth {
						p.GetToBuffer(ctx, blockKey(key(uint64(i+j)%wiretest.BenchBlocks)), buf)
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1000, "kops/s")
		})
	}
}

// TestNoAllocations: the way of success allocates nothing.
func TestNoAllocations(t *testing.T) {
	s := open(t, Config{Connections: 2}, redistest.Start(t), redistest.Start(t))
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
