package null

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// place puts everything on the one server.
type place struct{}

func (place) Server(kvstore.Key) int        { return 0 }
func (place) Sentinel(int) (string, []byte) { return "", nil }
func block(b byte) []byte                   { return bytes.Repeat([]byte{b}, kvstore.BlockSize) }
func key(n uint64) kvstore.Key              { return kvstore.Key{Layer: 7, Number: n} }
func open(t *testing.T) (*Store, *channel)  { return openOn(t, New()) }
func openOn(t *testing.T, s *Store) (*Store, *channel) {
	t.Helper()
	if _, err := s.Channel(t.Context()); !errors.Is(err, kvstore.ErrInvalid) {
		t.Fatalf("a channel before Join: %v", err)
	}
	if err := s.Join(place{}); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, ch.(*channel)
}

// TestAnswersAtOnce: every kind of operation, and batches of a large request,
// succeed; a read does not touch the buffer.
func TestAnswersAtOnce(t *testing.T) {
	_, ch := open(t)
	var ops []*kvstore.Op
	for n := range uint64(kvstore.MaxBatch - 1) {
		ops = append(ops, &kvstore.Op{Code: kvstore.Read + kvstore.Code(n%2), Key: key(n), Data: block(byte(n))})
	}
	ops = append(ops, &kvstore.Op{Code: kvstore.Discard, Key: key(1), Count: 1 << 20})
	ch.Do(t.Context(), ops)
	for i, op := range ops {
		if op.Err != nil {
			t.Fatalf("operation %d: %v", i, op.Err)
		}
		if op.Data != nil && !bytes.Equal(op.Data, block(byte(i))) {
			t.Fatalf("operation %d changed its buffer", i)
		}
	}
	if err := ch.Flush(t.Context(), 7); err != nil {
		t.Error(err)
	}
	if n := testing.AllocsPerRun(20, func() { ch.Do(context.Background(), ops) }); n > 0 {
		t.Errorf("%v allocations per batch", n)
	}
}

// TestKeepsTheContract: what it must refuse it refuses.
func TestKeepsTheContract(t *testing.T) {
	s, ch := open(t)
	for name, c := range map[string]struct {
		op   kvstore.Op
		want error
	}{
		"short":   {kvstore.Op{Code: kvstore.Read, Data: make([]byte, 512)}, kvstore.ErrInvalid},
		"no code": {kvstore.Op{Data: block(0)}, kvstore.ErrInvalid},
		"number":  {kvstore.Op{Code: kvstore.Read, Key: key(kvstore.MaxNumber + 1), Data: block(0)}, kvstore.ErrInvalid},
		"expects": {kvstore.Op{Code: kvstore.Write, Expect: kvstore.Absent, Data: block(0)}, kvstore.ErrUnsupported},
		"fence":   {kvstore.Op{Code: kvstore.Write, Fence: new(kvstore.Fence), Data: block(0)}, kvstore.ErrFenced},
	} {
		ch.Do(t.Context(), []*kvstore.Op{&c.op})
		if !errors.Is(c.op.Err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.op.Err, c.want)
		}
	}
	if err := s.CreateLayer(t.Context(), 9); err != nil {
		t.Error(err)
	}
	if err := s.CreateLayer(t.Context(), 9); !errors.Is(err, kvstore.ErrExists) {
		t.Errorf("a layer id was given twice: %v", err)
	}
	if _, err := s.NextExtent(t.Context(), 9, 5, true); !errors.Is(err, kvstore.ErrAbsent) {
		t.Errorf("it has data: %v", err)
	}
	if n, err := s.NextExtent(t.Context(), 9, 5, false); n != 5 || err != nil {
		t.Errorf("the hole begins at %d: %v", n, err)
	}
	_ = ch.Close()
	op := kvstore.Op{Code: kvstore.Read, Data: block(0)}
	if ch.Do(t.Context(), []*kvstore.Op{&op}); !errors.Is(op.Err, kvstore.ErrClosed) {
		t.Errorf("after Close: %v", op.Err)
	}
}
