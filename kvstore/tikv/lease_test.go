package tikv

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool/leasetest"
)

func TestLeases(t *testing.T) {
	leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
		_, s := newMock(t, true)
		return func() kvstore.Store { return s }
	})
}
