package storetest

import (
	"bytes"
	"context"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// lifecycle looks at a store before Join and at its fixed answers.
func lifecycle(t *testing.T, open Opener, need Case) {
	rig := open(t, need)
	if rig.Skip != "" {
		t.Skip(rig.Skip)
	}
	st, ctx := rig.Store, context.Background()
	props := st.Properties()
	if props.Name == "" || len(st.Servers()) == 0 {
		t.Errorf("name %q, servers %q: want at least one of each", props.Name, st.Servers())
	}
	if _, err := st.Channel(ctx); err == nil {
		t.Error("Channel before Join succeeded")
	}
	if _, err := st.Control().Get(ctx, 0, "storetest:nothing"); err == nil {
		t.Error("a record that nobody made exists")
	}
	if err := st.Join(Place(len(st.Servers()))); err != nil {
		t.Errorf("Join: %v", err)
	}
	ch, err := st.Channel(ctx)
	if err != nil {
		t.Fatalf("Channel after Join: %v", err)
	}
	ch.Do(ctx, nil) // an empty batch is nothing to do
	if err := ch.Close(); err != nil {
		t.Errorf("Close of the channel: %v", err)
	}
	if u, err := st.Usage(ctx); err != nil || u.Used < 0 || u.Capacity < 0 {
		t.Errorf("Usage: %+v, %v", u, err)
	}
	if _, err := st.Inspect(ctx); err != nil {
		t.Errorf("Inspect: %v", err)
	}
	if l := st.Locate(kvstore.Key{Layer: 1, Number: 2}); l.Server == "" || l.Key == "" {
		t.Errorf("Locate: %+v", l)
	}
	if err := st.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// readWrite: what was written is read, in one batch and in another channel.
func (b *bench) readWrite() {
	ch := b.channel()
	numbers := []uint64{0, 1, 2, 3, 31, 32, 33, 1000, 1 << 20, 1 << 31}
	for gen := uint64(1); gen <= 3; gen++ {
		var ops []*kvstore.Op
		for _, n := range numbers {
			ops = append(ops, b.writeOp(n, gen))
		}
		b.do(ch, ops...)
		for _, reader := range []kvstore.Channel{ch, b.channel()} {
			for _, n := range numbers {
				b.holds(reader, n, gen)
			}
		}
	}
	// Two reads of one key in one batch are allowed.
	one, two := b.readOp(31), b.readOp(31)
	b.do(ch, one, two)
	if !bytes.Equal(one.Data, two.Data) {
		b.t.Error("two reads of one block in one batch differ")
	}
}

// resultsPerOperation mixes all codes, and success with failure, in one batch.
func (b *bench) resultsPerOperation() {
	ch := b.channel()
	b.do(ch, b.writeOp(1, 1), b.writeOp(2, 1), b.writeOp(3, 1))
	short := b.writeOp(4, 1)
	short.Data = short.Data[:100]
	closed := b.writeOp(5, 1)
	closed.Fence = new(kvstore.Fence)
	ops := []*kvstore.Op{
		b.readOp(1), short, b.writeOp(2, 2), b.readOp(1 << 21), closed, b.discardOp(3, 1), b.writeOp(6, 2),
	}
	ch.Do(b.ctx, ops)
	for i, want := range []error{nil, kvstore.ErrInvalid, nil, errUntouched, kvstore.ErrFenced, nil, nil} {
		if i == 3 {
			b.isAbsent(ops[3], ops[3].Err)
			continue
		}
		b.is(ops[i].Err, want, "operation %d", i)
	}
	if gen, ok := generation(ops[0].Data, ops[0].Key); !ok || gen != 1 {
		b.t.Errorf("the read of the batch: generation %d, %v", gen, ok)
	}
	b.holds(ch, 2, 2)
	b.holds(ch, 6, 2)
	for _, n := range []uint64{3, 4, 5} {
		b.gone(ch, n)
	}
}

// absent: blocks never written, beside and beyond blocks that were.
func (b *bench) absent() {
	ch := b.channel()
	b.gone(ch, 0)
	b.do(ch, b.writeOp(10, 1))
	for _, n := range []uint64{0, 9, 11, 12, 1 << 22} {
		b.gone(ch, n)
	}
	ops := []*kvstore.Op{b.readOp(9), b.readOp(10), b.readOp(11), b.readOp(12)}
	ch.Do(b.ctx, ops)
	for i, op := range ops {
		if i != 1 {
			b.isAbsent(op, op.Err)
		}
	}
	b.is(ops[1].Err, nil, "the block between holes")
	if gen, ok := generation(ops[1].Data, ops[1].Key); !ok || gen != 1 {
		b.t.Errorf("the block between holes: generation %d, %v", gen, ok)
	}
}

func expecting(op *kvstore.Op, e kvstore.Expect) *kvstore.Op {
	op.Expect = e
	return op
}

// expectations: Present and Absent decide, and change nothing when they fail.
func (b *bench) expectations() {
	ch := b.channel()
	if !b.props.Expects {
		for _, e := range []kvstore.Expect{kvstore.Present, kvstore.Absent, kvstore.Same} {
			b.is(b.one(ch, expecting(b.writeOp(1, 1), e)), kvstore.ErrUnsupported, "expectation %d", e)
		}
		b.gone(ch, 1)
		return
	}
	b.is(b.one(ch, expecting(b.writeOp(1, 1), kvstore.Present)), kvstore.ErrAbsent, "overwrite of nothing")
	b.gone(ch, 1)
	b.is(b.one(ch, expecting(b.writeOp(1, 2), kvstore.Absent)), nil, "creation")
	b.holds(ch, 1, 2)
	b.is(b.one(ch, expecting(b.writeOp(1, 3), kvstore.Absent)), kvstore.ErrExists, "creation of what exists")
	b.holds(ch, 1, 2)
	b.is(b.one(ch, expecting(b.writeOp(1, 4), kvstore.Present)), nil, "overwrite")
	b.holds(ch, 1, 4)
	b.is(b.one(ch, b.writeOp(1, 5)), nil, "write of whatever is there")
	b.is(b.one(ch, b.writeOp(2, 5)), nil, "write of nothing there")
	b.holds(ch, 1, 5)
	b.holds(ch, 2, 5)
	b.do(ch, b.discardOp(1, 1))
	b.is(b.one(ch, expecting(b.writeOp(1, 6), kvstore.Present)), kvstore.ErrAbsent, "overwrite of what was discarded")
	b.gone(ch, 1)
	// Many of both in one batch: results must not slip to a neighbour.
	var ops []*kvstore.Op
	for n := uint64(0); n < 64; n++ {
		e := kvstore.Absent
		if n%3 == 0 {
			e = kvstore.Present
		}
		ops = append(ops, expecting(b.writeOp(100+n, 7), e))
	}
	ch.Do(b.ctx, ops)
	for n, op := range ops {
		want := error(nil)
		if n%3 == 0 {
			want = kvstore.ErrAbsent
		}
		b.is(op.Err, want, "operation %d", n)
	}
}

// versions: a write that expects Same succeeds once per version.
func (b *bench) versions() {
	if !b.props.Expects {
		b.t.Skip("the store has no expectations")
	}
	ch := b.channel()
	read := func() uint64 {
		op := b.readOp(1)
		op.Versioned = true
		b.do(ch, op)
		return op.Version
	}
	same := func(version, gen uint64) error {
		op := expecting(b.writeOp(1, gen), kvstore.Same)
		op.Version = version
		return b.one(ch, op)
	}
	b.is(same(1, 1), kvstore.ErrAbsent, "Same on nothing")
	b.do(ch, b.writeOp(1, 1))
	v := read()
	if again := read(); again != v {
		b.t.Errorf("reading changes the version: %d, %d", v, again)
	}
	b.is(same(v, 2), nil, "Same")
	b.holds(ch, 1, 2)
	b.is(same(v, 3), kvstore.ErrConflict, "Same with an old version")
	b.holds(ch, 1, 2)
	v = read()
	b.do(ch, b.writeOp(1, 2)) // equal data, yet another write
	b.is(same(v, 3), kvstore.ErrConflict, "Same after a write of equal data")
	v = read()
	b.do(ch, b.discardOp(1, 1))
	b.is(same(v, 3), kvstore.ErrAbsent, "Same after a discard")
	b.do(ch, b.writeOp(1, 4))
	b.is(same(v, 3), kvstore.ErrConflict, "Same after a discard and a write")
	b.holds(ch, 1, 4)
}

// discard: blocks go, neighbours stay, absent ones are gone already.
func (b *bench) discard() {
	ch := b.channel()
	b.do(ch, b.discardOp(5, 1), b.discardOp(1<<22, 0))
	var ops []*kvstore.Op
	for n := uint64(0); n < 40; n++ {
		ops = append(ops, b.writeOp(n, 1))
	}
	b.do(ch, ops...)
	ops = nil
	for n := uint64(0); n < 40; n += 2 {
		ops = append(ops, b.discardOp(n, uint32(n/2%2))) // 0 means 1
	}
	b.do(ch, ops...)
	for n := uint64(0); n < 40; n++ {
		if n%2 == 0 {
			b.gone(ch, n)
		} else {
			b.holds(ch, n, 1)
		}
	}
	b.do(ch, b.writeOp(4, 2))
	b.holds(ch, 4, 2)
}

// discardExtents: one operation, many blocks; also a huge and an empty extent.
func (b *bench) discardExtents() {
	ch := b.channel()
	var ops []*kvstore.Op
	for n := uint64(0); n < 64; n++ {
		ops = append(ops, b.writeOp(n, 1))
	}
	b.do(ch, ops...)
	if !b.props.DiscardExtents {
		if err := b.one(ch, b.discardOp(0, 64)); err == nil {
			b.t.Error("a store without DiscardExtents accepted an extent")
		}
		for n := uint64(0); n < 64; n++ {
			b.holds(ch, n, 1)
		}
		return
	}
	b.do(ch, b.discardOp(10, 20), b.writeOp(40, 2), b.discardOp(60, 1<<20), b.discardOp(1<<30, 1<<20))
	for n := uint64(0); n < 64; n++ {
		switch {
		case n >= 10 && n < 30, n >= 60:
			b.gone(ch, n)
		case n == 40:
			b.holds(ch, n, 2)
		default:
			b.holds(ch, n, 1)
		}
	}
}

// kinds: a map page and a block of equal number are two.
func (b *bench) kinds() {
	ch := b.channel()
	for kind := kvstore.KindMap; kind <= kvstore.KindMapTop; kind++ {
		op := b.writeOp(7, uint64(kind))
		op.Key.Kind = kind
		content(op.Data, op.Key, uint64(kind))
		err := b.one(ch, op)
		if b.props.Presence {
			b.is(err, kvstore.ErrUnsupported, "kind %d where the store keeps presence", kind)
			continue
		}
		b.is(err, nil, "write of kind %d", kind)
	}
	b.gone(ch, 7)
	if b.props.Presence {
		return
	}
	for kind := kvstore.KindMap; kind <= kvstore.KindMapTop; kind++ {
		op := b.readOp(7)
		op.Key.Kind = kind
		b.do(ch, op)
		if gen, ok := generation(op.Data, op.Key); !ok || gen != uint64(kind) {
			b.t.Errorf("kind %d holds %d, %v", kind, gen, ok)
		}
	}
}

// layers: claimed once and for ever; blocks of two layers are apart.
func (b *bench) layers() {
	ch := b.channel()
	b.is(b.st.CreateLayer(b.ctx, b.layer), kvstore.ErrExists, "second claim")
	other := b.newLayer()
	b.do(ch, b.writeOp(1, 1))
	op := b.readOp(1)
	op.Key.Layer = other
	b.isAbsent(op, b.one(ch, op))
	// One batch over two layers, with equal and neighbouring numbers.
	w1, w2, w3 := b.writeOp(1, 2), b.writeOp(2, 3), b.writeOp(3, 2)
	w2.Key.Layer = other
	content(w2.Data, w2.Key, 3)
	b.do(ch, w1, w2, w3)
	b.holds(ch, 1, 2)
	b.gone(ch, 2)
	b.holds(ch, 3, 2)
	op = b.readOp(2)
	op.Key.Layer = other
	b.do(ch, op)
	if gen, ok := generation(op.Data, op.Key); !ok || gen != 3 {
		b.t.Errorf("block of the other layer: %d, %v", gen, ok)
	}
	if !b.props.Presence {
		d := b.discardOp(2, 1)
		d.Key.Layer = other
		b.do(ch, d)
	}
	b.must(b.st.RemoveLayer(b.ctx, other))
	b.must(b.st.RemoveLayer(b.ctx, other)) // a removal may be resumed
	b.is(b.st.CreateLayer(b.ctx, other), kvstore.ErrExists, "claim of a removed layer")
	b.holds(ch, 1, 2)
}
