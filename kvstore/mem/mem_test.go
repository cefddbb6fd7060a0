package mem_test

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func opener(reserve bool) storetest.Opener {
	return func(t testing.TB, c storetest.Case) storetest.Rig {
		s := mem.New(mem.Config{Servers: c.Servers, CapacityBlocks: c.CapacityBlocks, Reserve: reserve})
		return storetest.Rig{
			Store: s,
			Empty: s.Forget,
			Corrupt: func(k kvstore.Key) {
				if !s.Corrupt(k) {
					t.Fatalf("%v is not stored", k)
				}
			},
		}
	}
}

func TestConformance(t *testing.T) {
	t.Run("reserve", func(t *testing.T) { storetest.Run(t, opener(true)) })
	t.Run("no reserve", func(t *testing.T) { storetest.Run(t, opener(false)) })
}

func BenchmarkStore(b *testing.B) { storetest.Bench(b, opener(false)) }
