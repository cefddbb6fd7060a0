package file_test

import (
	"path/filepath"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
)

func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		dir := filepath.Join(t.TempDir(), "store")
		return func() kvstore.Store {
			s, err := file.Open(dir, file.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
	})
}
