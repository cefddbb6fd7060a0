package volume

import (
	"bytes"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// FuzzPage: what is taken for a page of the map is one, and is written back as it was.
func FuzzPage(f *testing.F) {
	page := make([]byte, kvstore.BlockSize)
	putPage(page, 7, pageID{1, 3}, pageVersion{2, 9}, nil)
	f.Add(page, uint32(7), uint8(1), uint64(3))
	f.Add(page, uint32(8), uint8(1), uint64(3))
	f.Add(page[:100], uint32(7), uint8(1), uint64(3))
	f.Add([]byte{}, uint32(0), uint8(0), uint64(0))
	words, again := make([]uint64, wordsPerPage), make([]byte, kvstore.BlockSize) // shared by all executions
	f.Fuzz(func(t *testing.T, b []byte, layer uint32, level uint8, n uint64) {
		id := pageID{level % maxLevels, n % (kvstore.MaxNumber + 1)}
		ver, err := parsePage(b, kvstore.LayerID(layer), id)
		if err != nil {
			return
		}
		for i := range words {
			words[i] = pageWord(b, i)
		}
		clear(again)
		if putPage(again, kvstore.LayerID(layer), id, ver, words); !bytes.Equal(again, b) {
			t.Fatalf("a page of layer %d, %v is written back differently", layer, id)
		}
	})
}
