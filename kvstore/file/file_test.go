package file_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func opener(t testing.TB, c storetest.Case) storetest.Rig {
	if c.CapacityBlocks > 0 {
		return storetest.Rig{Skip: "TestFull does it on a small tmpfs"}
	}
	dir := filepath.Join(t.TempDir(), "store")
	s, err := file.Open(dir, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return storetest.Rig{Store: s, Empty: func(int) {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}}
}

func TestConformance(t *testing.T) { storetest.Run(t, opener) }

func BenchmarkStore(b *testing.B) { storetest.Bench(b, opener) }
