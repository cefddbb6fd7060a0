package storetest

import (
	"fmt"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// allocations: reading, and overwriting what exists, allocate nothing.
func (b *bench) allocations() {
	if b.rig.Allocates != "" {
		b.t.Skip(b.rig.Allocates)
	}
	if RaceEnabled {
		b.t.Skip("the race detector allocates")
	}
	ch := b.channel()
	for _, width := range []uint64{1, 32} {
		var writes, reads, discards []*kvstore.Op
		for n := range width {
			writes = append(writes, b.writeOp(n*3, 1)) // not neighbours
			reads = append(reads, b.readOp(n))
			discards = append(discards, b.discardOp(n+1<<20, 1))
			b.do(ch, b.writeOp(n, 1))
		}
		for name, ops := range map[string][]*kvstore.Op{"write": writes, "read": reads, "discard of nothing": discards} {
			b.do(ch, ops...) // buffers that grow once may
			if got := testing.AllocsPerRun(50, func() { ch.Do(b.ctx, ops) }); got >= 1 {
				b.t.Errorf("%s, batch of %d: %.1f allocations", name, width, got)
			}
			b.do(ch, ops...) // and it was the way of success
		}
	}
}

// Bench measures reads and overwrites in batches of 1, 8 and 32, one channel,
// scattered over 64 MiB. The time reported is per block.
func Bench(tb *testing.B, open Opener) {
	const span = 16384
	for _, code := range []kvstore.Code{kvstore.Read, kvstore.Write} {
		for _, width := range []int{1, 8, 32} {
			name := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write"}[code]
			tb.Run(fmt.Sprintf("%s/%d", name, width), func(tb *testing.B) {
				b := newBench(tb, open, Case{Servers: 1})
				ch := b.channel()
				var ops []*kvstore.Op
				for n := range uint64(span) {
					if ops = append(ops, b.writeOp(n, 1)); len(ops) == 256 {
						b.do(ch, ops...)
						ops = ops[:0]
					}
				}
				ops = ops[:0]
				for range width {
					op := b.writeOp(0, 2)
					op.Code = code
					ops = append(ops, op)
				}
				tb.SetBytes(kvstore.BlockSize)
				tb.ReportAllocs()
				tb.ResetTimer()
				at := uint64(0)
				for done := 0; done < tb.N; done += width {
					for _, op := range ops {
						at += 4099 // prime, so all blocks are met, no two alike in a batch
						op.Key.Number = at % span
					}
					ch.Do(b.ctx, ops[:min(width, tb.N-done)])
				}
				for _, op := range ops {
					if op.Err != nil && tb.N >= width {
						tb.Fatal(op.Err)
					}
				}
			})
		}
	}
}
