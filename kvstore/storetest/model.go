package storetest

import (
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// modelSteps keeps the model test below a second on the slowest stores.
const modelSteps = 150

// model does random batches on a few blocks and compares every result with what
// a map says, over two channels in turn.
func (b *bench) model() {
	channels := []kvstore.Channel{b.channel(), b.channel()}
	blocks := map[uint64]uint64{} // number -> generation
	const span = 96
	gen := uint64(0)
	for step := range modelSteps {
		ch := channels[b.rng.IntN(len(channels))]
		var ops []*kvstore.Op
		var want []error
		used := map[uint64]bool{}
		next := b.rng.Uint64N(span)
		for range 1 + b.rng.IntN(32) {
			n := next % span
			if next++; b.rng.IntN(3) == 0 { // runs of neighbours, with jumps
				next = b.rng.Uint64N(span)
			}
			if used[n] {
				continue
			}
			used[n] = true
			gen++
			op, err := b.modelOp(n, gen, blocks)
			ops, want = append(ops, op), append(want, err)
		}
		ch.Do(b.ctx, ops)
		for i, op := range ops {
			b.judge(step, op, want[i], blocks)
		}
		if b.rng.IntN(20) == 0 {
			b.must(ch.Flush(b.ctx, b.layer))
		}
	}
	for n := range uint64(span) {
		if gen, ok := blocks[n]; ok {
			b.holds(channels[0], n, gen)
		} else {
			b.gone(channels[0], n)
		}
	}
}

// modelOp draws an operation on block n and says what its result must be.
func (b *bench) modelOp(n, gen uint64, blocks map[uint64]uint64) (*kvstore.Op, error) {
	_, there := blocks[n]
	switch b.rng.IntN(6) {
	case 0:
		return b.discardOp(n, 1), nil
	case 1, 2:
		if !there && b.props.ReportsAbsent {
			return b.readOp(n), kvstore.ErrAbsent
		}
		return b.readOp(n), nil
	case 3:
		if b.props.Expects {
			if there {
				return expecting(b.writeOp(n, gen), kvstore.Absent), kvstore.ErrExists
			}
			return expecting(b.writeOp(n, gen), kvstore.Present), kvstore.ErrAbsent
		}
	case 4:
		if b.props.Expects {
			if there {
				return expecting(b.writeOp(n, gen), kvstore.Present), nil
			}
			return expecting(b.writeOp(n, gen), kvstore.Absent), nil
		}
	}
	return b.writeOp(n, gen), nil
}

// judge compares a result with the model and carries its effect over.
func (b *bench) judge(step int, op *kvstore.Op, want error, blocks map[uint64]uint64) {
	b.t.Helper()
	if !errors.Is(op.Err, want) {
		b.t.Fatalf("step %d: code %d, expect %d on %v: got %v, want %v", step, op.Code, op.Expect, op.Key, op.Err, want)
	}
	n := op.Key.Number
	switch {
	case want != nil:
	case op.Code == kvstore.Discard:
		delete(blocks, n)
	case op.Code == kvstore.Write:
		blocks[n], _ = generation(op.Data, op.Key)
	default:
		gen, there := blocks[n]
		if !there {
			b.isAbsent(op, op.Err)
			return
		}
		if got, ok := generation(op.Data, op.Key); !ok || got != gen {
			b.t.Fatalf("step %d: %v holds %d (whole: %v), want %d", step, op.Key, got, ok, gen)
		}
	}
}

// presence: extents and counts as the store reports them are exact.
func (b *bench) presence() {
	if !b.props.Presence {
		_, err := b.st.NextExtent(b.ctx, b.layer, 0, true)
		b.is(err, kvstore.ErrUnsupported, "NextExtent")
		_, err = b.st.Allocated(b.ctx, b.layer)
		b.is(err, kvstore.ErrUnsupported, "Allocated")
		return
	}
	ch := b.channel()
	const span = 256
	there := make([]bool, span)
	for round := range 8 {
		var ops []*kvstore.Op
		for n := range there {
			switch b.rng.IntN(4) {
			case 0:
				ops, there[n] = append(ops, b.writeOp(uint64(n), uint64(round))), true
			case 1:
				ops, there[n] = append(ops, b.discardOp(uint64(n), 1)), false
			}
		}
		b.do(ch, ops...)
		b.extents(there)
		b.must(ch.Flush(b.ctx, b.layer))
		b.extents(there)
	}
	b.do(ch, b.discardOp(0, span))
	b.extents(make([]bool, span))
}

// extents compares NextExtent from every block, and Allocated, with the model.
func (b *bench) extents(there []bool) {
	b.t.Helper()
	count := uint64(0)
	for from := range there {
		if there[from] {
			count++
		}
		for _, data := range []bool{true, false} {
			want := from
			for want < len(there) && there[want] != data {
				want++
			}
			got, err := b.st.NextExtent(b.ctx, b.layer, uint64(from), data)
			if want == len(there) && data {
				b.is(err, kvstore.ErrAbsent, "data at or after block %d", from)
				continue
			}
			b.must(err)
			if got != uint64(want) {
				b.t.Fatalf("NextExtent from %d (data %v) is %d, want %d", from, data, got, want)
			}
		}
	}
	got, err := b.st.Allocated(b.ctx, b.layer)
	b.must(err)
	if got != count {
		b.t.Fatalf("Allocated is %d, want %d", got, count)
	}
}
