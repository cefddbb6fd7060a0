package storetest

import (
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// full: a full store refuses new blocks, keeps old ones, and works again after
// discards. With a Reserve, overwrites and map pages go on.
func (b *bench) full() {
	ch := b.channel()
	limit := uint64(b.need.CapacityBlocks) * 64
	stored, refused := uint64(0), uint64(0)
	for refused < 8 { // some more after the first: a refusal must not shift results
		if stored > limit {
			b.t.Fatalf("not full after %d blocks", stored)
		}
		var ops []*kvstore.Op
		for i := range uint64(8) {
			ops = append(ops, b.writeOp(stored+i, 1))
		}
		ch.Do(b.ctx, ops)
		first := stored
		for i, op := range ops {
			if errors.Is(op.Err, kvstore.ErrFull) {
				refused++
				continue
			}
			b.is(op.Err, nil, "write of new block %d", op.Key.Number)
			if op.Key.Number == stored {
				stored++
			} else { // stored behind one that was refused: keep to a dense range
				b.do(ch, b.discardOp(first+uint64(i), 1))
			}
		}
	}
	if stored == 0 {
		b.t.Fatal("the store was full at once")
	}
	b.t.Logf("full after %d blocks", stored)
	b.fullStillServes(ch, stored)
	b.must(ch.Flush(b.ctx, b.layer))
	for n := uint64(0); n < stored/2; n++ {
		b.do(ch, b.discardOp(n, 1))
	}
	for n := uint64(0); n < stored/4; n++ {
		b.do(ch, b.writeOp(n, 3))
	}
	b.holds(ch, 0, 3)
}

// fullStillServes: each block of the full store is the one acknowledged last,
// whatever overwrites met.
func (b *bench) fullStillServes(ch kvstore.Channel, stored uint64) {
	for n := uint64(0); n < stored; n++ {
		op, want := b.writeOp(n, 2), uint64(2)
		if b.props.Expects && n%2 == 0 {
			op.Expect = kvstore.Present
		}
		err := b.one(ch, op)
		if errors.Is(err, kvstore.ErrFull) && !(b.props.Reserve && op.Expect == kvstore.Present) {
			want = 1
		} else {
			b.is(err, nil, "overwrite of block %d on a full store", n)
		}
		b.holds(ch, n, want)
	}
	if !b.props.Reserve || b.props.Presence {
		return
	}
	for n := range uint64(4) {
		op := b.writeOp(n, 1)
		op.Key.Kind = kvstore.KindMap
		b.is(b.one(ch, op), nil, "new map page %d on a full store", n)
		op.Code = kvstore.Read
		b.is(b.one(ch, op), nil, "read of map page %d", n)
	}
}

// serverLost: an emptied server is found at Flush, at each one, and on a new
// channel before any of its operations succeeds.
func (b *bench) serverLost() {
	if b.rig.Empty == nil {
		b.t.Skip("the rig cannot empty a server")
	}
	ch := b.channel()
	var ops []*kvstore.Op
	for n := uint64(0); n < 512; n += 8 { // spread over the servers
		ops = append(ops, b.writeOp(n, 1))
	}
	b.do(ch, ops...)
	b.must(ch.Flush(b.ctx, b.layer))
	b.do(ch, ops...) // a flush must look only at servers that were written since
	lost := len(b.st.Servers()) - 1
	b.rig.Empty(lost)
	b.is(ch.Flush(b.ctx, b.layer), kvstore.ErrServerLost, "first flush after the loss")
	b.is(ch.Flush(b.ctx, b.layer), kvstore.ErrServerLost, "second flush after the loss")
	fresh := b.channel()
	b.is(fresh.Flush(b.ctx, b.layer), kvstore.ErrServerLost, "flush on a new channel")
	for _, op := range ops {
		read := b.readOp(op.Key.Number)
		err := b.one(fresh, read)
		if b.place.Server(read.Key) == lost {
			b.is(err, kvstore.ErrServerLost, "read from the lost server on a new channel")
			continue
		}
		b.is(err, nil, "read from the other server")
	}
	write := b.writeOp(0, 2)
	for b.place.Server(write.Key) != lost {
		write.Key.Number += 32
	}
	b.is(b.one(fresh, write), kvstore.ErrServerLost, "write to the lost server on a new channel")
}

// corrupt: a spoiled block is reported, its neighbours are not hurt, and a write
// heals it.
func (b *bench) corrupt() {
	if !b.props.Checksums || b.rig.Corrupt == nil {
		b.t.Skip("the store has no checksums, or the rig cannot spoil a block")
	}
	ch := b.channel()
	b.do(ch, b.writeOp(1, 1), b.writeOp(2, 1), b.writeOp(3, 1))
	b.rig.Corrupt(b.key(2))
	ops := []*kvstore.Op{b.readOp(1), b.readOp(2), b.readOp(3)}
	ch.Do(b.ctx, ops)
	b.is(ops[0].Err, nil, "block before")
	b.is(ops[1].Err, kvstore.ErrCorrupt, "spoiled block")
	b.is(ops[2].Err, nil, "block behind")
	if gen, ok := generation(ops[2].Data, ops[2].Key); !ok || gen != 1 {
		b.t.Errorf("block behind: %d, %v", gen, ok)
	}
	b.do(ch, b.writeOp(2, 2))
	b.holds(ch, 2, 2)
}

// seed: a block that was written with another layer's seed does not pass.
func (b *bench) seed() {
	if !b.props.Checksums {
		b.t.Skip("the store has no checksums")
	}
	ch := b.channel()
	b.do(ch, b.writeOp(1, 1))
	op := b.readOp(1)
	op.Seed++
	b.is(b.one(ch, op), kvstore.ErrCorrupt, "read with another seed")
	b.holds(ch, 1, 1)
}
