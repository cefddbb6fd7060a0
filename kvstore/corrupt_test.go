package kvstore

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// testRand is a source that begins with KVBFS_SEED, or with a seed that it logs.
// (storetest.Seed imports this package.)
func testRand(t *testing.T) *rand.Rand {
	seed, err := strconv.ParseUint(os.Getenv("KVBFS_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("KVBFS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// TestOrigin: the block that misplaced data belongs to is found, with all bits of
// the checksum and without the highest one, also beyond 16 TiB; data that was
// changed, and data of another layer, belongs nowhere.
func TestOrigin(t *testing.T) {
	rnd := testRand(t)
	data := make([]byte, BlockSize)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	chance := 0
	for range 100 {
		const limit = 1 << 18
		k := Key{Layer: LayerID(rnd.Uint32()), Kind: Kind(rnd.IntN(3)), Number: rnd.Uint64N(limit)}
		seed := rnd.Uint32()
		for _, mask := range []uint32{1<<32 - 1, 1<<31 - 1} {
			e := &CorruptError{Length: BlockSize, Sum: Checksum(seed, k, data) & mask, Mask: mask}
			if n, ok := e.Origin(seed, k.Layer, k.Kind, limit, data); !ok || n != k.Number {
				t.Fatalf("%v, mask %#x: found %d, %v", k, mask, n, ok)
			}
			if _, ok := e.Origin(seed+1, k.Layer, k.Kind, limit, data); ok {
				chance++
			}
			at := rnd.IntN(BlockSize)
			data[at] ^= 1
			if _, ok := e.Origin(seed, k.Layer, k.Kind, limit, data); ok {
				chance++
			}
			data[at] ^= 1
			for _, wrong := range []CorruptError{{Length: 12, Sum: e.Sum, Mask: mask}, {Length: BlockSize, Sum: e.Sum}} {
				if _, ok := wrong.Origin(seed, k.Layer, k.Kind, limit, data); ok || !errors.Is(&wrong, ErrCorrupt) {
					t.Fatalf("%+v has an origin", wrong)
				}
			}
		}
	}
	// One in 2^13 or 2^14 is taken for a block by chance.
	if chance > 5 {
		t.Errorf("%d of 400 damaged blocks are said to be misplaced", chance)
	}
	// A limit of one more than the number, or many others have the same checksum.
	k := Key{Layer: 7, Number: 3<<32 + 12345}
	e := &CorruptError{Length: BlockSize, Sum: Checksum(9, k, data), Mask: 1<<32 - 1}
	n, ok := e.Origin(9, 7, KindBlock, k.Number+1, data)
	if !ok || Checksum(9, Key{Layer: 7, Number: n}, data) != e.Sum {
		t.Errorf("%v: found %d, %v", k, n, ok)
	}
}
