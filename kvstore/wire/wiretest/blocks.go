package wiretest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Expectations: what each expectation of a write finds.
func Expectations(t *testing.T, rig Rig) {
	rig.each(t, func(t *testing.T, s kvstore.Store) {
		ch := ChannelOf(t, s)
		a, b := Block(1), Block(2)
		Want(t, Do1(t, ch, Read(1)), kvstore.ErrAbsent)
		Want(t, Do1(t, ch, Write(1, kvstore.Present, a)), kvstore.ErrAbsent)
		Want(t, Do1(t, ch, Write(1, kvstore.Absent, a)), nil)
		Want(t, Do1(t, ch, Write(1, kvstore.Absent, b)), kvstore.ErrExists)
		WantBlock(t, ch, 1, a)
		Want(t, Do1(t, ch, Write(1, kvstore.Present, b)), nil)
		WantBlock(t, ch, 1, b)

		r := Read(1)
		r.Versioned = true
		Want(t, Do1(t, ch, r), nil)
		w := Write(1, kvstore.Same, a)
		w.Version = r.Version
		Want(t, Do1(t, ch, w), nil)
		WantBlock(t, ch, 1, a)
		w = Write(1, kvstore.Same, b)
		w.Version = r.Version
		Want(t, Do1(t, ch, w), kvstore.ErrConflict)
		WantBlock(t, ch, 1, a)
		w = Write(2, kvstore.Same, b)
		w.Version = 5
		Want(t, Do1(t, ch, w), kvstore.ErrAbsent)

		Want(t, Do1(t, ch, Write(3, kvstore.Any, a)), nil)
		Want(t, Do1(t, ch, Write(3, kvstore.Any, b)), nil)
		WantBlock(t, ch, 3, b)
		Want(t, Do1(t, ch, Discard(3)), nil)
		Want(t, Do1(t, ch, Discard(3)), nil)
		Want(t, Do1(t, ch, Read(3)), kvstore.ErrAbsent)
		Want(t, ch.Flush(Background(t), Layer), nil)
	})
}

// BatchesAgainstModel runs random batches beside a map.
func BatchesAgainstModel(t *testing.T, rig Rig) {
	rig.each(t, func(t *testing.T, s kvstore.Store) {
		const blocks = 300
		seed := storetest.Seed(t.Logf)
		rnd := rand.New(rand.NewPCG(seed, 0))
		ch := ChannelOf(t, s)
		model := map[uint64][]byte{}
		for range 60 {
			var ops []*kvstore.Op
			for _, n := range rnd.Perm(blocks)[:1+rnd.IntN(blocks)] {
				n := uint64(n)
				switch rnd.IntN(5) {
				case 0, 1:
					e := kvstore.Any
					if rnd.IntN(2) == 0 {
						e = kvstore.Absent
						if model[n] != nil {
							e = kvstore.Present
						}
					}
					data := Block(rnd.Uint64())
					ops = append(ops, Write(n, e, data))
				case 2:
					ops = append(ops, Discard(n))
				default:
					ops = append(ops, Read(n))
				}
			}
			ch.Do(Background(t), ops)
			for _, op := range ops {
				n := op.Key.Number
				if op.Code == kvstore.Read && model[n] == nil {
					Want(t, op.Err, kvstore.ErrAbsent)
					continue
				}
				Want(t, op.Err, nil)
				switch op.Code {
				case kvstore.Write:
					model[n] = op.Data
				case kvstore.Discard:
					delete(model, n)
				case kvstore.Read:
					if !bytes.Equal(op.Data, model[n]) {
						t.Fatalf("block %d differs from the model", n)
					}
				}
			}
		}
	})
}

// LargeMixedBatch sends 4 MiB of writes and asks for 4 MiB at a time: neither
// side may wait for the other for ever.
func LargeMixedBatch(t *testing.T, rig Rig) {
	rig.each(t, func(t *testing.T, s kvstore.Store) {
		ch := ChannelOf(t, s)
		var ops []*kvstore.Op
		for n := range uint64(kvstore.MaxBatch) {
			ops = append(ops, Write(n, kvstore.Any, Block(n)))
		}
		ch.Do(Background(t), ops)
		for _, op := range ops {
			Want(t, op.Err, nil)
		}
		for n := range ops {
			if n%2 == 0 {
				ops[n] = Read(uint64(n))
			} else {
				ops[n] = Write(uint64(n), kvstore.Present, Block(uint64(n)+5000))
			}
		}
		ch.Do(Background(t), ops)
		for n, op := range ops {
			Want(t, op.Err, nil)
			if n%2 == 0 && !bytes.Equal(op.Data, Block(uint64(n))) {
				t.Fatalf("block %d differs", n)
			}
		}
	})
}

// Invalid: what breaks the contract is refused, and what does not is done.
func Invalid(t *testing.T, rig Rig) {
	s := rig.open(t, Options{}, rig.Start(t, false))
	ch := ChannelOf(t, s)
	good := Write(1, kvstore.Any, Block(1))
	bad := []*kvstore.Op{
		{}, {Code: 9}, {Code: kvstore.Read, Data: make([]byte, 5)},
		{Code: kvstore.Write, Expect: 9, Data: Block(1)},
		{Code: kvstore.Read, Data: Block(1), Key: kvstore.Key{Number: kvstore.MaxNumber + 1}},
	}
	ch.Do(Background(t), append(bad, good))
	for i, op := range bad {
		if !errors.Is(op.Err, kvstore.ErrInvalid) {
			t.Errorf("op %d: %v", i, op.Err)
		}
	}
	Want(t, good.Err, nil)
	wide := Discard(1)
	wide.Count = 2
	Want(t, Do1(t, ch, wide), kvstore.ErrUnsupported)
	many := make([]*kvstore.Op, kvstore.MaxBatch+1)
	for i := range many {
		many[i] = Read(uint64(i))
	}
	ch.Do(Background(t), many)
	Want(t, many[0].Err, kvstore.ErrInvalid)
}

// Fence: no change passes a closed fence.
func Fence(t *testing.T, rig Rig) {
	s := rig.open(t, Options{}, rig.Start(t, false))
	ch := ChannelOf(t, s)
	var f kvstore.Fence
	w := Write(1, kvstore.Any, Block(1))
	w.Fence = &f
	Want(t, Do1(t, ch, w), kvstore.ErrFenced)
	Want(t, Do1(t, ch, Read(1)), kvstore.ErrAbsent)
	f.OpenForEver()
	Want(t, Do1(t, ch, w), nil)
	d := Discard(1)
	d.Fence = &f
	f.Close()
	Want(t, Do1(t, ch, d), kvstore.ErrFenced)
	WantBlock(t, ch, 1, Block(1))
}

// ParallelChannels: channels do not see each other.
func ParallelChannels(t *testing.T, rig Rig) {
	rig.each(t, func(t *testing.T, s kvstore.Store) {
		var wg sync.WaitGroup
		for g := range uint64(6) {
			ch := ChannelOf(t, s)
			wg.Go(func() {
				rounds := uint64(20)
				if storetest.RaceEnabled {
					rounds = 6
				}
				for round := range rounds {
					var ops []*kvstore.Op
					for i := range uint64(40) {
						ops = append(ops, Write(g*1000+i, kvstore.Any, Block(round*100+i)))
					}
					ch.Do(Background(t), ops)
					for i := range uint64(40) {
						r := Read(g*1000 + i)
						ch.Do(Background(t), []*kvstore.Op{r})
						if r.Err != nil || !bytes.Equal(r.Data, Block(round*100+i)) || ops[i].Err != nil {
							t.Errorf("channel %d block %d: %v, %v", g, i, ops[i].Err, r.Err)
							return
						}
					}
					if err := ch.Flush(Background(t), Layer); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
}

// Control: records of all lengths and names.
func Control(t *testing.T, rig Rig) {
	rig.each(t, func(t *testing.T, s kvstore.Store) {
		c, ctx, last := s.Control(), Background(t), len(s.Servers())-1
		for _, name := range []string{"pool:x", ":x", "x", "::x", "a%20:b"} {
			_, err := c.Get(ctx, last, name)
			Want(t, err, kvstore.ErrAbsent)
			Want(t, c.Swap(ctx, last, name, kvstore.Record{Version: 3}, []byte("v")), kvstore.ErrAbsent)
			Want(t, c.Add(ctx, last, name, []byte("one")), nil)
			Want(t, c.Add(ctx, last, name, []byte("two")), kvstore.ErrExists)
			r, err := c.Get(ctx, last, name)
			Want(t, err, nil)
			if string(r.Value) != "one" {
				t.Fatalf("got %q", r.Value)
			}
			Want(t, c.Swap(ctx, last, name, r, bytes.Repeat([]byte("x"), kvstore.MaxRecord)), nil)
			Want(t, c.Swap(ctx, last, name, r, []byte("late")), kvstore.ErrConflict)
			r, err = c.Get(ctx, last, name)
			Want(t, err, nil)
			if len(r.Value) != kvstore.MaxRecord {
				t.Fatalf("got %d bytes", len(r.Value))
			}
			Want(t, c.Delete(ctx, last, name), nil)
			Want(t, c.Delete(ctx, last, name), nil)
		}
		Want(t, c.Add(ctx, last, "with space:", nil), kvstore.ErrInvalid)
		_, err := c.Get(ctx, 99, "pool:x")
		Want(t, err, kvstore.ErrInvalid)
		Want(t, s.CreateLayer(ctx, Layer), kvstore.ErrExists)
	})
}
