package trace_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"github.com/kvbfs/kvbfs/kvstore/trace"
)

// What is written down is read again.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(storetest.Seed(t.Logf), 1))
	want := []trace.Access{{}, {Number: kvstore.MaxNumber, Write: true}, {}}
	for range 10000 {
		n := rng.Uint64N(1 << rng.IntN(40))
		for range 1 + rng.IntN(3) {
			want = append(want, trace.Access{Number: n, Write: rng.IntN(2) == 0})
			n++
		}
	}
	var b bytes.Buffer
	w := trace.NewWriter(&b)
	for _, a := range want {
		w.Add(a)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	got, err := trace.Read(bytes.NewReader(whole))
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("%d accesses came back of %d (%v)", len(got), len(want), err)
	}
	for _, cut := range []int{0, 5, len(whole) / 2} {
		if _, err := trace.Read(bytes.NewReader(whole[:cut])); err == nil {
			t.Errorf("a trace that was cut to %d bytes is taken for a whole one", cut)
		}
	}
}

// A store that is traced is a store, and the trace has the blocks of its batches.
func TestStore(t *testing.T) {
	var b bytes.Buffer
	closed := errors.New("closed")
	s := trace.Wrap(mem.New(mem.Config{Servers: 1}), trace.NewWriter(&b), func(err error) error { return errors.Join(err, closed) })
	if err := s.Join(storetest.Place(1)); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, kvstore.BlockSize)
	op := func(code kvstore.Code, kind kvstore.Kind, n uint64) *kvstore.Op {
		return &kvstore.Op{Code: code, Key: kvstore.Key{Layer: 1, Kind: kind, Number: n}, Data: data}
	}
	ch.Do(context.Background(), []*kvstore.Op{op(kvstore.Write, kvstore.KindBlock, 5), op(kvstore.Write, kvstore.KindBlock+1, 6)})
	if !ch.Try(context.Background(), []*kvstore.Op{op(kvstore.Read, kvstore.KindBlock, 5), op(kvstore.Discard, kvstore.KindBlock, 7)}) {
		t.Error("Try left something")
	}
	if err := ch.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); !errors.Is(err, closed) {
		t.Errorf("Close: %v", err)
	}
	got, err := trace.Read(&b)
	if err != nil || !slices.Equal(got, []trace.Access{{Number: 5, Write: true}, {Number: 5}}) {
		t.Errorf("%v, %v", got, err)
	}
}
