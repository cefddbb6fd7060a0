package storetest

import (
	"bytes"
	"context"
	"math"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// buffers: a store keeps no buffer after Do, neither for writing nor for reading.
func (b *bench) buffers() {
	ch := b.channel()
	var writes, reads []*kvstore.Op
	for n := uint64(0); n < 64; n++ {
		writes = append(writes, b.writeOp(n, 1))
		reads = append(reads, b.readOp(n))
	}
	for range 20 {
		for _, op := range writes {
			content(op.Data, op.Key, 1)
		}
		b.do(ch, writes...)
		for _, op := range writes {
			poison(op.Data)
		}
		b.do(ch, reads...)
		for _, op := range reads {
			if gen, ok := generation(op.Data, op.Key); !ok || gen != 1 {
				b.t.Fatalf("%v: the buffer was read after Do returned", op.Key)
			}
			poison(op.Data)
		}
		b.do(ch, b.writeOp(100, 1), b.readOp(0))
		for _, op := range reads {
			if !bytes.Equal(op.Data, poisoned[:]) {
				b.t.Fatalf("%v: the buffer was written after Do returned", op.Key)
			}
		}
	}
	// Buffers need not be aligned, nor end where their memory does.
	memory := bytes.Repeat([]byte{0xA5}, 3*kvstore.BlockSize)
	op := b.readOp(3)
	op.Data = memory[77 : 77+kvstore.BlockSize]
	b.do(ch, op)
	if gen, ok := generation(op.Data, op.Key); !ok || gen != 1 {
		b.t.Errorf("read into an unaligned buffer: %d, %v", gen, ok)
	}
	if memory[76] != 0xA5 || memory[77+kvstore.BlockSize] != 0xA5 {
		b.t.Error("a read wrote beside its buffer")
	}
}

// largestBatch: MaxBatch operations are done, one more are refused.
func (b *bench) largestBatch() {
	ch := b.channel()
	var ops []*kvstore.Op
	for n := uint64(0); n < kvstore.MaxBatch; n++ {
		ops = append(ops, b.writeOp(n, 1))
	}
	b.do(ch, ops...)
	for n, op := range ops {
		if n%2 == 0 {
			ops[n] = b.readOp(op.Key.Number)
		} else {
			content(op.Data, op.Key, 2)
		}
	}
	b.do(ch, ops...)
	for n := uint64(0); n < kvstore.MaxBatch; n++ {
		if n%2 == 0 {
			if gen, ok := generation(ops[n].Data, ops[n].Key); !ok || gen != 1 {
				b.t.Fatalf("block %d: %d, %v", n, gen, ok)
			}
		} else if n%63 == 0 {
			b.holds(ch, n, 2)
		}
	}
	for n := range ops {
		ops[n] = b.writeOp(uint64(n), 3)
	}
	ops = append(ops, b.writeOp(kvstore.MaxBatch, 3))
	ch.Do(b.ctx, ops)
	for _, op := range ops {
		b.is(op.Err, kvstore.ErrInvalid, "batch that is too long")
	}
	b.holds(ch, 0, 1)
	b.holds(ch, 1, 2)
	b.gone(ch, kvstore.MaxBatch)
}

// invalid: each breach of the contract is refused and leaves its neighbours.
func (b *bench) invalid() {
	ch := b.channel()
	b.do(ch, b.writeOp(1, 1), b.writeOp(2, 1))
	for name, spoil := range map[string]func(op *kvstore.Op){
		"no code":       func(op *kvstore.Op) { op.Code = 0 },
		"unknown code":  func(op *kvstore.Op) { op.Code = 77 },
		"no data":       func(op *kvstore.Op) { op.Data = nil },
		"short data":    func(op *kvstore.Op) { op.Data = op.Data[:kvstore.BlockSize-1] },
		"long data":     func(op *kvstore.Op) { op.Data = make([]byte, kvstore.BlockSize+1) },
		"expectation":   func(op *kvstore.Op) { op.Expect = 99 },
		"number":        func(op *kvstore.Op) { op.Key.Number = kvstore.MaxNumber + 1 },
		"huge number":   func(op *kvstore.Op) { op.Key.Number = math.MaxUint64 },
		"short read":    func(op *kvstore.Op) { op.Code, op.Data = kvstore.Read, op.Data[:1] },
		"far too large": func(op *kvstore.Op) { op.Code, op.Key.Number = kvstore.Discard, math.MaxUint64-1 },
	} {
		bad := b.writeOp(2, 2)
		spoil(bad)
		ops := []*kvstore.Op{b.readOp(1), bad, b.writeOp(3, 2)}
		ch.Do(b.ctx, ops)
		b.is(ops[0].Err, nil, "%s: the operation before it", name)
		b.is(bad.Err, kvstore.ErrInvalid, "%s", name)
		b.is(ops[2].Err, nil, "%s: the operation behind it", name)
		b.holds(ch, 2, 1)
	}
	b.holds(ch, 3, 2)
}

// fence: no write or discard passes a closed one; reads need none.
func (b *bench) fence() {
	ch := b.channel()
	var fence kvstore.Fence
	fenced := func(op *kvstore.Op) *kvstore.Op { op.Fence = &fence; return op }
	b.is(b.one(ch, fenced(b.writeOp(1, 1))), kvstore.ErrFenced, "write, never opened")
	b.gone(ch, 1)
	fence.Open(kvstore.Boottime() + int64(time.Hour))
	b.is(b.one(ch, fenced(b.writeOp(1, 2))), nil, "write, open")
	fence.Open(kvstore.Boottime() - 1)
	ops := []*kvstore.Op{
		fenced(b.writeOp(1, 3)), b.writeOp(2, 3), fenced(b.writeOp(3, 3)), b.writeOp(4, 3), fenced(b.readOp(1)), b.readOp(1),
	}
	// A block is in one batch once, unless all of them read.
	ops[0].Key.Number = 6
	ch.Do(b.ctx, ops)
	for i, want := range []error{kvstore.ErrFenced, nil, kvstore.ErrFenced, nil, nil, nil} {
		b.is(ops[i].Err, want, "operation %d of a batch, lease run out", i)
	}
	b.is(b.one(ch, fenced(b.discardOp(1, 1))), kvstore.ErrFenced, "discard, lease run out")
	b.holds(ch, 1, 2)
	b.gone(ch, 3)
	b.gone(ch, 6)
	fence.OpenForEver()
	b.do(ch, fenced(b.discardOp(1, 1)))
	b.gone(ch, 1)
}

// contextEnds: with a context that has ended nothing is done, and the channel
// works again with another one.
func (b *bench) contextEnds() {
	ch := b.channel()
	b.do(ch, b.writeOp(1, 1))
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	late, cancelLate := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancelLate()
	for _, c := range []struct {
		ctx  context.Context
		want error
	}{{cancelled, kvstore.ErrAborted}, {late, kvstore.ErrTimeout}} {
		ops := []*kvstore.Op{b.readOp(1), b.writeOp(2, 2), b.discardOp(3, 1)}
		ch.Do(c.ctx, ops)
		for i, op := range ops {
			b.is(op.Err, c.want, "operation %d", i)
		}
		if ch.Flush(c.ctx, b.layer) == nil {
			b.t.Errorf("a flush without time succeeded")
		}
		if b.st.Control().Add(c.ctx, 0, b.name("late"), nil) == nil {
			b.t.Errorf("a record was added without time")
		}
	}
	b.holds(ch, 1, 1)
}

// closedChannel: after Close all is ErrClosed, and another channel is not hurt.
func (b *bench) closedChannel() {
	open := b.channel()
	ch, err := b.st.Channel(b.ctx)
	b.must(err)
	b.do(ch, b.writeOp(1, 1))
	b.must(ch.Close())
	b.is(b.one(ch, b.readOp(1)), kvstore.ErrClosed, "read on a closed channel")
	b.is(b.one(ch, b.writeOp(1, 2)), kvstore.ErrClosed, "write on a closed channel")
	if ch.Flush(b.ctx, b.layer) == nil {
		b.t.Error("flush on a closed channel succeeded")
	}
	b.holds(open, 1, 1)
}

// channels: many at once, each on its own blocks, mixed with flushes.
func (b *bench) channels() {
	const workers, rounds, width = 8, 20, 32
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		ch := b.channel()
		wg.Go(func() {
			for gen := uint64(1); gen <= rounds; gen++ {
				var ops []*kvstore.Op
				for n := range uint64(width) {
					ops = append(ops, b.writeOp(n*workers+w, gen))
				}
				ch.Do(b.ctx, ops)
				for i, op := range ops {
					if op.Err != nil {
						b.t.Errorf("worker %d: write: %v", w, op.Err)
						return
					}
					ops[i] = b.readOp(op.Key.Number)
				}
				ch.Do(b.ctx, ops)
				for _, op := range ops {
					if got, ok := generation(op.Data, op.Key); op.Err != nil || !ok || got != gen {
						b.t.Errorf("worker %d: %v holds %d (whole: %v, %v), want %d", w, op.Key, got, ok, op.Err, gen)
						return
					}
				}
				if gen%10 == 0 {
					if err := ch.Flush(b.ctx, b.layer); err != nil {
						b.t.Errorf("worker %d: flush: %v", w, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// oneBlock: many writers and readers on one block see whole blocks only, and a
// generation never older than what was acknowledged before the read began.
func (b *bench) oneBlock() {
	const writers, readers, rounds = 4, 4, 100
	first := b.channel()
	b.do(first, b.writeOp(1, 0))
	var wg sync.WaitGroup
	for w := range uint64(writers) {
		ch := b.channel()
		wg.Go(func() {
			for i := range uint64(rounds) {
				if err := b.one(ch, b.writeOp(1, i*writers+w)); err != nil {
					b.t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	for range readers {
		ch := b.channel()
		wg.Go(func() {
			for range rounds {
				op := b.readOp(1)
				if err := b.one(ch, op); err != nil {
					b.t.Errorf("read: %v", err)
					return
				}
				if _, ok := generation(op.Data, op.Key); !ok && !b.props.Presence {
					b.t.Error("read a torn block")
					return
				}
			}
		})
	}
	wg.Wait()
	op := b.readOp(1)
	b.do(first, op)
	if gen, ok := generation(op.Data, op.Key); !ok || gen < (rounds-1)*writers {
		b.t.Errorf("in the end the block holds generation %d (whole: %v), not one of the last writes", gen, ok)
	}
}

// flush: covers what other channels wrote, and may be repeated with nothing new.
func (b *bench) flush() {
	ch, other := b.channel(), b.channel()
	b.must(ch.Flush(b.ctx, b.layer))
	for gen := uint64(1); gen <= 3; gen++ {
		b.do(ch, b.writeOp(gen*32, gen), b.writeOp(gen*64+1, gen))
		b.must(other.Flush(b.ctx, b.layer))
		b.must(ch.Flush(b.ctx, b.layer))
	}
	b.do(ch, b.discardOp(32, 1))
	b.must(ch.Flush(b.ctx, b.layer))
	b.gone(other, 32)
	b.holds(other, 96, 3)
}
