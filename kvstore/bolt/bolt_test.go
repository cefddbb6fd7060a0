package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func opener(t testing.TB, c storetest.Case) storetest.Rig {
	if c.CapacityBlocks > 0 {
		return storetest.Rig{Skip: "a full file system needs one of its own: kvstore/file shows what happens"}
	}
	s, err := Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Rig{
		Store:     s,
		Allocates: "transactions do",
		Corrupt: func(k kvstore.Key) {
			err := s.update(func(tx *bbolt.Tx) error {
				b := tx.Bucket(layersBucket).Bucket(layerName(k.Layer))
				v := append([]byte(nil), b.Get(blockName(k.Number))...)
				v[77] ^= 1
				return b.Put(blockName(k.Number), v)
			})
			if err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) { storetest.Run(t, opener) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, opener) }

// TestOneProcess: a second opener is told that the file is in use.
func TestOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, kvstore.ErrUnreachable) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second open: %v", err)
	}
	if err := s.Control().Add(context.Background(), 0, "a:b", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if rec, err := s.Control().Get(context.Background(), 0, "a:b"); err != nil || string(rec.Value) != "kept" {
		t.Errorf("after opening again: %q, %v", rec.Value, err)
	}
}

// TestDamagedFile: what is no bbolt file is an error, not a panic, and stays as it is.
func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	text := []byte(strings.Repeat("no database ", 2000))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil {
		t.Error("it was opened")
	}
	if got, _ := os.ReadFile(path); string(got) != string(text) {
		t.Error("the file was changed")
	}
}

// TestRoom measures what docs/stores.md says: the room that a block takes.
func TestRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if err := errors.Join(s.CreateLayer(ctx, 7), s.Join(storetest.Place(1))); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 4096
	for n := uint64(0); n < blocks; n += 512 {
		var ops []*kvstore.Op
		for i := range uint64(512) {
			ops = append(ops, &kvstore.Op{Code: kvstore.Write, Key: kvstore.Key{Layer: 7, Number: n + i}, Data: make([]byte, kvstore.BlockSize)})
		}
		ch.Do(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
	}
	u, err := s.Usage(ctx)
	if err != nil || u.Used < blocks*kvstore.BlockSize || u.Used > 4*blocks*kvstore.BlockSize {
		t.Errorf("%d blocks take %+v, %v", blocks, u, err)
	}
	t.Logf("%d bytes per block", u.Used/blocks)
}

// filled makes a store with blocks 0 to n-1 of layer 7, and a channel.
func filled(t *testing.T, n uint64) (*Store, kvstore.Channel) {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := errors.Join(s.CreateLayer(t.Context(), 7), s.Join(storetest.Place(1))); err != nil {
		t.Fatal(err)
	}
	ch, err := s.Channel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for at := uint64(0); at < n; at += 512 {
		var ops []*kvstore.Op
		for i := at; i < min(n, at+512); i++ {
			ops = append(ops, blockOp(kvstore.Write, i))
		}
		ch.Do(t.Context(), ops)
		for _, op := range ops {
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
	}
	return s, ch
}

// blockOp is an operation on a block of layer 7, a write with data of its own.
func blockOp(code kvstore.Code, n uint64) *kvstore.Op {
	op := &kvstore.Op{Code: code, Key: kvstore.Key{Layer: 7, Number: n}, Data: make([]byte, kvstore.BlockSize)}
	if code == kvstore.Write {
		binary.BigEndian.PutUint64(op.Data, n+1)
	}
	return op
}

// small puts n small values, which a discard takes for blocks, into layer 7.
func small(t *testing.T, s *Store, n uint64) {
	t.Helper()
	if err := s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(layersBucket).Bucket(layerName(7))
		for i := range n {
			if err := b.Put(blockName(i), []byte{1}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// ends is a context that is cancelled once it was asked a number of times.
type ends struct {
	context.Context
	left int
}

func (e *ends) Err() error {
	if e.left--; e.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestLargeDiscard: a discard of very many blocks takes several transactions, with a
// look at the context between; what is behind it in the batch is done too.
func TestLargeDiscard(t *testing.T) {
	const blocks = 2*maxDiscard + maxDiscard/2
	s, ch := filled(t, 0)
	count := func() (n uint64) {
		n, err := s.Allocated(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	last := func() (id int) {
		_ = s.view(func(tx *bbolt.Tx) error { id = tx.ID(); return nil })
		return id
	}
	small(t, s, blocks)
	op := &kvstore.Op{Code: kvstore.Discard, Key: kvstore.Key{Layer: 7}, Count: 1 << 30}
	ch.Do(&ends{t.Context(), 1}, []*kvstore.Op{op})
	if !errors.Is(op.Err, kvstore.ErrAborted) || count() != blocks-maxDiscard {
		t.Errorf("given up: %v, %d blocks are left", op.Err, count())
	}
	small(t, s, blocks)
	op.Key.Number, op.Count = 1, blocks-2
	write, began := blockOp(kvstore.Write, blocks+7), last()
	ch.Do(t.Context(), []*kvstore.Op{op, write})
	if op.Err != nil || write.Err != nil || count() != 3 {
		t.Errorf("discard: %v, write: %v, %d blocks are left, want 3", op.Err, write.Err, count())
	}
	if n := last() - began; n != 3 {
		t.Errorf("%d transactions, want 3", n)
	}
}

// TestDiscardPassesEmptyPages: a discard does not look again and again at the pages that
// it has emptied: with so many of them it would take minutes.
func TestDiscardPassesEmptyPages(t *testing.T) {
	const blocks = 1 << 16
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "small.db"), 0o600, &bbolt.Options{PageSize: 512, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	value := make([]byte, 200) // two of them fill a page
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("b"))
		for i := uint64(0); i < blocks && err == nil; i++ {
			err = b.Put(blockName(i), value)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		room := blocks + 1
		_, err := discard(tx.Bucket([]byte("b")), &kvstore.Op{Count: blocks}, 0, &room)
		if room != 1 {
			t.Errorf("%d blocks were not discarded", room-1)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// freeListAt returns where the newest list of free pages is in the file; what a commit reads.
func freeListAt(t *testing.T, path string) int64 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	at, newest := int64(0), uint64(0)
	for _, meta := range [][]byte{b[16:], b[page+16:]} { // behind the page's header
		if id := binary.NativeEndian.Uint64(meta[48:]); id >= newest {
			at, newest = int64(binary.NativeEndian.Uint64(meta[32:]))*int64(page), id
		}
	}
	return at
}

// spoilLast damages the page of the last block.
func spoilLast(t *testing.T, s *Store) {
	last := 0
	err := s.view(func(tx *bbolt.Tx) error {
		for id := 0; ; {
			info, err := tx.Page(id)
			if err != nil || info == nil {
				return err
			}
			if info.Type == "leaf" && info.OverflowCount > 0 {
				last = id
			}
			id += info.OverflowCount + 1
		}
	})
	f, openErr := os.OpenFile(s.path, os.O_WRONLY, 0)
	if err := errors.Join(err, openErr); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), int64(last*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
}

// TestUnreadable: what cannot be read of the file gives an error and hurts neither the
// process nor its neighbours; a transaction is rolled back; and once it can be read
// again all goes on.
func TestUnreadable(t *testing.T) {
	const blocks = 2000
	cut := func(part int64) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			if err := os.Truncate(s.path, freeListAt(t, s.path)*part/2); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name        string
		spoil       func(*testing.T, *Store)
		least, most int  // blocks that can still be read
		stuck       bool // nothing goes on
	}{
		{"the list of free pages", cut(2), blocks, blocks, false},
		{"half of the file", cut(1), 0, blocks - 1, false},
		{"all of the file", cut(0), 0, 0, true},
		{"one page", spoilLast, blocks - 10, blocks - 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, ch := filled(t, blocks)
			whole, err := os.ReadFile(s.path)
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, s)
			all := func(code kvstore.Code) (good int) {
				for at := uint64(0); at < blocks; at += 500 {
					var ops []*kvstore.Op
					for i := range uint64(500) {
						ops = append(ops, blockOp(code, at+i))
					}
					ch.Do(t.Context(), ops)
					for i, op := range ops {
						if want := blockOp(kvstore.Write, at+uint64(i)); op.Err == nil && bytes.Equal(op.Data, want.Data) {
							good++
						} else if !errors.Is(op.Err, kvstore.ErrCorrupt) {
							t.Fatal(op.Err)
						}
					}
				}
				return good
			}
			if good := all(kvstore.Read); good < c.least || good > c.most {
				t.Errorf("%d reads succeeded", good)
			}
			write := blockOp(kvstore.Write, blocks-1)
			clear(write.Data)
			for range 2 { // the second one does not wait for the first one
				if ch.Do(t.Context(), []*kvstore.Op{write}); !errors.Is(write.Err, kvstore.ErrCorrupt) {
					t.Fatalf("write: %v", write.Err)
				}
			}
			if err := os.WriteFile(s.path, whole, 0o600); err != nil { // as a disk does that failed for a while
				t.Fatal(err)
			}
			if c.stuck {
				if good := all(kvstore.Read); good != 0 {
					t.Errorf("%d reads succeeded", good)
				}
				return
			}
			if good := all(kvstore.Read); good != blocks {
				t.Errorf("%d blocks are as they were", good)
			}
			if good := all(kvstore.Write); good != blocks {
				t.Errorf("%d writes succeeded", good)
			}
			if good := all(kvstore.Read); good != blocks {
				t.Errorf("%d reads succeeded", good)
			}
		})
	}
}
