package redis

import (
	"context"
	"fmt"
	"sync"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// benchBlocks stay in the server; 4096 of them take 21 MiB.
const benchBlocks = 4096

func prepare(t testing.TB, ch kvstore.Channel) {
	for n := uint64(0); n < benchBlocks; n += 512 {
		var ops []*kvstore.Op
		for i := range uint64(512) {
			ops = append(ops, write(n+i, kvstore.Any, block(n+i)))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
}

// batchOf makes a batch; turn moves it over the blocks.
func batchOf(code kvstore.Code, n int) []*kvstore.Op {
	var ops []*kvstore.Op
	for i := range n {
		op := read(uint64(i))
		if code == kvstore.Write {
			op = write(uint64(i), kvstore.Present, block(uint64(i)))
		}
		ops = append(ops, op)
	}
	return ops
}

func turn(ops []*kvstore.Op, round uint64) {
	for i, op := range ops {
		op.Key.Number = (round*uint64(len(ops)) + uint64(i)) % benchBlocks
	}
}

// BenchmarkDo is the raw speed of channels: worker goroutines, each with its own.
func BenchmarkDo(b *testing.B) {
	for _, tcp := range []bool{false, true} {
		name, opts := "unix", []redistest.Option(nil)
		if tcp {
			name, opts = "tcp", []redistest.Option{redistest.TCP()}
		}
		s := open(b, Config{}, redistest.Start(b, opts...))
		prepare(b, channelOf(b, s))
		for _, code := range []kvstore.Code{kvstore.Read, kvstore.Write} {
			for _, depth := range []int{1, 8, 32, 128} {
				for _, workers := range []int{1, 2} {
					verb := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write"}[code]
					b.Run(fmt.Sprintf("%s/%s/batch%d/workers%d", name, verb, depth, workers), func(b *testing.B) {
						benchDo(b, s, code, depth, workers)
					})
				}
			}
		}
	}
}

func benchDo(b *testing.B, s *Store, code kvstore.Code, depth, workers int) {
	ctx := context.Background()
	var wg sync.WaitGroup
	var chs []kvstore.Channel
	for range workers {
		ch := channelOf(b, s)
		warm := batchOf(kvstore.Read, depth)
		ch.Do(ctx, warm)
		chs = append(chs, ch)
	}
	b.SetBytes(kvstore.BlockSize)
	b.ReportAllocs()
	b.ResetTimer()
	for w, ch := range chs {
		wg.Go(func() {
			ops := batchOf(code, depth)
			rounds := uint64(b.N/depth/workers + 1)
			for round := range rounds {
				turn(ops, round*uint64(workers)+uint64(w))
				ch.Do(ctx, ops)
				for _, op := range ops {
					if op.Err != nil {
						b.Error(op.Err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1000, "kops/s")
}

// BenchmarkGoRedis is the same work through the library of the control plane.
func BenchmarkGoRedis(b *testing.B) {
	server := redistest.Start(b)
	s := open(b, Config{}, server)
	prepare(b, channelOf(b, s))
	ctx := context.Background()
	buf := make([]byte, valueSize)
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("read/batch%d", depth), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; i < b.N; i += depth {
				_, err := server.Client.Pipelined(ctx, func(p goredis.Pipeliner) error {
					for j := range depth {
						p.GetToBuffer(ctx, blockKey(key(uint64(i+j)%benchBlocks)), buf)
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
