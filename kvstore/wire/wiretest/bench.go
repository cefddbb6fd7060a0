package wiretest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// BenchBlocks stay in the server; 4096 of them take 17 MiB and more.
const BenchBlocks = 4096

func Prepare(t testing.TB, ch kvstore.Channel) {
	for n := uint64(0); n < BenchBlocks; n += 512 {
		var ops []*kvstore.Op
		for i := range uint64(512) {
			ops = append(ops, Write(n+i, kvstore.Any, Block(n+i)))
		}
		ch.Do(Background(t), ops)
		for _, op := range ops {
			Want(t, op.Err, nil)
		}
	}
}

// BatchOf makes a batch; Turn moves it over the blocks.
func BatchOf(code kvstore.Code, n int) []*kvstore.Op {
	var ops []*kvstore.Op
	for i := range n {
		op := Read(uint64(i))
		if code == kvstore.Write {
			op = Write(uint64(i), kvstore.Present, Block(uint64(i)))
		}
		ops = append(ops, op)
	}
	return ops
}

func Turn(ops []*kvstore.Op, round uint64) {
	for i, op := range ops {
		op.Key.Number = (round*uint64(len(ops)) + uint64(i)) % BenchBlocks
	}
}

func BenchDo(b *testing.B, s kvstore.Store, code kvstore.Code, depth, workers int) {
	ctx := context.Background()
	var wg sync.WaitGroup
	var chs []kvstore.Channel
	for range workers {
		ch := ChannelOf(b, s)
		warm := BatchOf(kvstore.Read, depth)
		ch.Do(ctx, warm)
		chs = append(chs, ch)
	}
	b.SetBytes(kvstore.BlockSize)
	b.ReportAllocs()
	b.ResetTimer()
	for w, ch := range chs {
		wg.Go(func() {
			ops := BatchOf(code, depth)
			rounds := uint64(b.N/depth/workers + 1)
			for round := range rounds {
				Turn(ops, round*uint64(workers)+uint64(w))
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

// BenchmarkDo is the raw speed of channels: worker goroutines, each with its own.
func BenchmarkDo(b *testing.B, rig Rig) {
	for name, tcp := range map[string]bool{"unix": false, "tcp": true} {
		s := rig.open(b, Options{}, rig.Start(b, tcp))
		Prepare(b, ChannelOf(b, s))
		for _, code := range []kvstore.Code{kvstore.Read, kvstore.Write} {
			for _, depth := range []int{1, 8, 32, 128} {
				for _, workers := range []int{1, 2} {
					verb := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write"}[code]
					b.Run(fmt.Sprintf("%s/%s/batch%d/workers%d", name, verb, depth, workers), func(b *testing.B) {
						BenchDo(b, s, code, depth, workers)
					})
				}
			}
		}
	}
}
