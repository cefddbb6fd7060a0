package file

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestReadsAreWhole: a block that is read while it is overwritten is the old one
// or the new one, also in runs of many blocks, which the page cache alone does
// not promise.
func TestReadsAreWhole(t *testing.T) {
	s, first := open(t, filepath.Join(t.TempDir(), "store"))
	const run = 8
	ops := func(code kvstore.Code, n uint64) (list []*kvstore.Op) {
		for i := range n {
			list = append(list, op(code, i, 0))
		}
		return list
	}
	if err := do(first, ops(kvstore.Write, run)...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	work := func(f func(ch kvstore.Channel, i int) bool) {
		ch, err := s.Channel(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer ch.Close()
			for i := 0; ctx.Err() == nil && f(ch, i); i++ {
			}
		})
	}
	for range 2 {
		batch := ops(kvstore.Write, run)
		work(func(ch kvstore.Channel, i int) bool {
			for _, op := range batch {
				for j := range op.Data {
					op.Data[j] = byte(i)
				}
			}
			ch.Do(context.Background(), batch)
			return batch[0].Err == nil
		})
	}
	var reads atomic.Int64
	for n := range 2 {
		batch := ops(kvstore.Read, 1+uint64(n)*(run-1))
		work(func(ch kvstore.Channel, i int) bool {
			ch.Do(context.Background(), batch)
			reads.Add(1)
			for _, op := range batch {
				for _, b := range op.Data {
					if op.Err != nil || b != op.Data[0] {
						t.Errorf("read %d: block %d is torn (%v)", i, op.Key.Number, op.Err)
						return false
					}
				}
			}
			return true
		})
	}
	wg.Wait()
	if reads.Load() < 100 {
		t.Errorf("only %d reads beside the writers: that shows nothing", reads.Load())
	}
}
