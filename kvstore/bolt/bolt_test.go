package bolt

import (
	"context"
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
