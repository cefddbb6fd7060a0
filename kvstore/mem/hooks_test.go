package mem_test

import (
	"context"
	"errors"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func open(t *testing.T, cfg mem.Config) (*mem.Store, kvstore.Channel) {
	t.Helper()
	s := mem.New(cfg)
	if err := s.Join(storetest.Place(max(cfg.Servers, 1))); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s, ch
}

func do(ch kvstore.Channel, code kvstore.Code, k kvstore.Key, fill byte) error {
	op := &kvstore.Op{Code: code, Key: k, Data: make([]byte, kvstore.BlockSize)}
	op.Data[0] = fill
	ch.Do(context.Background(), []*kvstore.Op{op})
	return op.Err
}

// Each hook causes its misfortune on one block and no other.
func TestHooks(t *testing.T) {
	s, ch := open(t, mem.Config{Servers: 3})
	var keys []kvstore.Key
	for n := range uint64(200) {
		k := kvstore.Key{Layer: 7, Number: n * 16}
		keys = append(keys, k)
		if err := do(ch, kvstore.Write, k, byte(n)); err != nil {
			t.Fatal(err)
		}
	}
	stored := s.Keys()
	if len(stored) != len(keys) || s.Blocks() != len(keys) {
		t.Fatalf("%d keys, %d blocks, want %d", len(stored), s.Blocks(), len(keys))
	}
	for i := range keys {
		if stored[i] != keys[i] {
			t.Fatalf("Keys()[%d] is %v, want %v", i, stored[i], keys[i])
		}
	}
	if !s.Drop(keys[3]) || s.Drop(keys[3]) || !s.Corrupt(keys[4]) || s.Corrupt(keys[3]) ||
		!s.Misplace(keys[5], keys[6]) || s.Misplace(keys[3], keys[6]) || s.Misplace(keys[6], keys[3]) {
		t.Error("a hook did not say truly whether the block was there")
	}
	for i, k := range keys {
		want := map[int]error{3: kvstore.ErrAbsent, 4: kvstore.ErrCorrupt, 6: kvstore.ErrCorrupt}[i]
		if err := do(ch, kvstore.Read, k, 0); !errors.Is(err, want) {
			t.Errorf("block %d: %v, want %v", i, err, want)
		}
	}
	if s.Blocks() != len(keys)-1 {
		t.Errorf("%d blocks after a drop", s.Blocks())
	}
}

// TestNothingOutlivesTheProcess: what it promises, and that it keeps nothing aside.
func TestNothingOutlivesTheProcess(t *testing.T) {
	s, ch := open(t, mem.Config{})
	if d := s.Properties().Durability; d != kvstore.Volatile {
		t.Errorf("durability %v", d)
	}
	k := kvstore.Key{Layer: 1}
	if err := errors.Join(do(ch, kvstore.Write, k, 1), ch.Flush(context.Background(), 1)); err != nil {
		t.Fatal(err)
	}
	_, other := open(t, mem.Config{})
	if err := do(other, kvstore.Read, k, 0); !errors.Is(err, kvstore.ErrAbsent) {
		t.Errorf("another store has the block: %v", err)
	}
}

// Counters tell what reached a server, and nothing else.
func TestCounters(t *testing.T) {
	s, ch := open(t, mem.Config{})
	k := kvstore.Key{Layer: 1}
	_ = do(ch, kvstore.Read, k, 0)
	_ = do(ch, kvstore.Write, k, 0)
	_ = do(ch, kvstore.Write, k, 0)
	_ = do(ch, kvstore.Discard, k, 0)
	_ = do(ch, 99, k, 0)
	op := &kvstore.Op{Code: kvstore.Write, Data: make([]byte, kvstore.BlockSize), Fence: new(kvstore.Fence)}
	ch.Do(context.Background(), []*kvstore.Op{op})
	_ = ch.Flush(context.Background(), 1)
	_, _ = s.Control().Get(context.Background(), 0, "a:b")
	want := mem.Counters{Batches: 6, Reads: 1, Writes: 2, Discards: 1, Flushes: 1, Control: 1}
	if got := s.Counters(); got != want || got.Requests() != 4 {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}

// Capacity is per server, discards give it back, and Forget gives back all.
func TestCapacity(t *testing.T) {
	s, ch := open(t, mem.Config{CapacityBlocks: 2})
	key := func(n uint64) kvstore.Key { return kvstore.Key{Layer: 1, Number: n} }
	for n, want := range []error{nil, nil, kvstore.ErrFull} {
		if err := do(ch, kvstore.Write, key(uint64(n)), 1); !errors.Is(err, want) {
			t.Errorf("write %d: %v, want %v", n, err, want)
		}
	}
	if err := do(ch, kvstore.Write, key(0), 2); !errors.Is(err, kvstore.ErrFull) {
		t.Errorf("overwrite on a full server without reserve: %v", err)
	}
	_ = do(ch, kvstore.Discard, key(1), 0)
	if err := do(ch, kvstore.Write, key(0), 2); err != nil {
		t.Errorf("overwrite with room: %v", err)
	}
	if err := do(ch, kvstore.Write, key(2), 2); err != nil {
		t.Errorf("new block with room: %v", err)
	}
	s.Forget(0)
	if u, err := s.Usage(context.Background()); err != nil || u.Blocks != 0 || u.Capacity != 2*kvstore.BlockSize {
		t.Errorf("usage after Forget: %+v, %v", u, err)
	}
}
