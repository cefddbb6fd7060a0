package bolt

import (
	"path/filepath"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
)

// TestLeases: of one process, which is all that can open the file; containers would be
// such machines if it were otherwise.
func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		s, err := Open(filepath.Join(t.TempDir(), "store.db"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return func() kvstore.Store { return s }
	})
}
