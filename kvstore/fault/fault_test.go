package fault_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/fault"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func opener(t testing.TB, c storetest.Case) storetest.Rig {
	m := mem.New(mem.Config{Servers: c.Servers, CapacityBlocks: c.CapacityBlocks, Reserve: true})
	return storetest.Rig{Store: fault.Wrap(m, 1), Empty: m.Forget, Corrupt: func(k kvstore.Key) { m.Corrupt(k) }}
}

// A decorator without faults is the store itself.
func TestConformance(t *testing.T) { storetest.Run(t, opener) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, opener) }

func open(t *testing.T) (*fault.Store, *mem.Store, kvstore.Channel) {
	t.Helper()
	m := mem.New(mem.Config{})
	s := fault.Wrap(m, 42)
	if err := s.Join(storetest.Place(1)); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s, m, ch
}

func write(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Key: kvstore.Key{Layer: 1, Number: n}, Data: make([]byte, kvstore.BlockSize)}
}

func rules(t *testing.T, s *fault.Store, text string) {
	t.Helper()
	r, err := fault.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	s.SetRules(r...)
}

// Each action, in one batch: what is answered, and what the store has.
func TestActions(t *testing.T) {
	s, m, ch := open(t)
	rules(t, s, `
		write from=1 to=1 drop      # acknowledged, not done
		write from=2 to=2 fail=full; write from=3 to=3 failafter=timeout
	`)
	ops := []*kvstore.Op{write(0), write(1), write(2), write(3), write(4)}
	ch.Do(context.Background(), ops)
	for n, want := range []error{nil, nil, kvstore.ErrFull, kvstore.ErrTimeout, nil} {
		if !errors.Is(ops[n].Err, want) {
			t.Errorf("write %d: %v, want %v", n, ops[n].Err, want)
		}
	}
	var got []uint64
	for _, k := range m.Keys() {
		got = append(got, k.Number)
	}
	if len(got) != 3 || got[0] != 0 || got[1] != 3 || got[2] != 4 {
		t.Errorf("stored are %v, want 0, 3, 4", got)
	}
	if c := s.Counters(); c.Faults != 3 || c.Writes != 5 || c.LargestBatch != 5 {
		t.Errorf("counted %+v", c)
	}
}

// Skip, nth and times count as they say, and one seed gives one sequence.
func TestRuleCounting(t *testing.T) {
	s, m, ch := open(t)
	rules(t, s, "write kind=block skip=2 nth=3 times=2 drop")
	for n := range uint64(14) {
		ch.Do(context.Background(), []*kvstore.Op{write(n)})
	}
	if m.Blocks() != 12 || m.Drop(kvstore.Key{Layer: 1, Number: 4}) || m.Drop(kvstore.Key{Layer: 1, Number: 7}) {
		t.Errorf("dropped are not the 5th and 8th write: stored %v", m.Keys())
	}
	chance := func() (hits []uint64) {
		s, m, ch := open(t)
		rules(t, s, "write p=0.3 drop")
		for n := range uint64(100) {
			ch.Do(context.Background(), []*kvstore.Op{write(n)})
			if !m.Drop(write(n).Key) {
				hits = append(hits, n)
			}
		}
		return hits
	}
	one, two := chance(), chance()
	if len(one) < 10 || len(one) > 60 || len(one) != len(two) || one[0] != two[0] {
		t.Errorf("30 %% of 100, twice: %v and %v", one, two)
	}
}

// Faults of flushes and records.
func TestCalls(t *testing.T) {
	s, _, ch := open(t)
	ctx := context.Background()
	rules(t, s, "flush nth=2 fail=serverlost; control skip=1 times=1 failafter=unreachable")
	if err := ch.Flush(ctx, 1); err != nil {
		t.Errorf("first flush: %v", err)
	}
	if err := ch.Flush(ctx, 1); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("second flush: %v", err)
	}
	c := s.Control()
	if err := c.Add(ctx, 0, "a:1", nil); err != nil {
		t.Errorf("first add: %v", err)
	}
	if err := c.Add(ctx, 0, "a:2", nil); !errors.Is(err, kvstore.ErrUnreachable) {
		t.Errorf("second add: %v", err)
	}
	if _, err := c.Get(ctx, 0, "a:2"); err != nil {
		t.Errorf("its reply was lost, not the record: %v", err)
	}
}

// While stopped, batches wait; they end with their context, or go on.
func TestStop(t *testing.T) {
	s, _, ch := open(t)
	s.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	op := write(1)
	if ch.Do(ctx, []*kvstore.Op{op}); !errors.Is(op.Err, kvstore.ErrAborted) {
		t.Errorf("write while stopped, cancelled: %v", op.Err)
	}
	other, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ops := []*kvstore.Op{write(1), write(2)}
	for i, ch := range []kvstore.Channel{ch, other} {
		wg.Go(func() { ch.Do(context.Background(), ops[i:i+1]) })
	}
	for s.Counters().MaxConcurrent < 2 { // both are in, and neither can end
		time.Sleep(time.Millisecond)
	}
	s.Continue()
	wg.Wait()
	if ops[0].Err != nil || ops[1].Err != nil {
		t.Errorf("writes after Continue: %v, %v", ops[0].Err, ops[1].Err)
	}
}

func TestParseErrors(t *testing.T) {
	for _, text := range []string{"write", "fly drop", "write p=2 drop", "read p=x drop", "write nth= drop", "read fail=never",
		"write kind=999 drop", "write colour=red drop", "write layer=xyz drop"} {
		if r, err := fault.Parse(text); err == nil {
			t.Errorf("%q is %+v", text, r)
		}
	}
	if r, err := fault.Parse("\n # nothing\n ; "); err != nil || len(r) != 0 {
		t.Errorf("no rules: %v, %v", r, err)
	}
}
