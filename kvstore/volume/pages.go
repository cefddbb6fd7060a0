package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// The arithmetic and the bytes of presence pages.
//
// A page is one block of the store: a header of 32 bytes and 32512 bits. Level 0
// has a bit per block of the volume, level n+1 a bit per existing page of level
// n; the top level has one page, which exists from the volume's creation on.
const (
	pageHeader   = 32
	wordsPerPage = (kvstore.BlockSize - pageHeader) / 8 // 508
	bitsPerPage  = wordsPerPage * 64                    // 32512
	// maxLevels is what pool.MaxSize needs: 2^34 blocks, 528417 pages of level 0,
	// 17 of level 1, one of level 2.
	maxLevels = 3
)

// One more level than maxLevels would be needed if this underflowed.
const _ = uint64(bitsPerPage)*bitsPerPage*bitsPerPage - pool.MaxSize/kvstore.BlockSize

// The kinds of all levels exist.
const _ = uint(kvstore.KindMapTop - kvstore.KindMap - (maxLevels - 1))

var pageMagic = [4]byte{'K', 'V', 'M', '1'}

var errBadPage = errors.New("bad header of a presence page")

// pageID names one page of the presence map of a volume.
type pageID struct {
	level uint8
	n     uint64
}

func (id pageID) key(layer kvstore.LayerID) kvstore.Key {
	return kvstore.Key{Layer: layer, Kind: kvstore.KindMap + kvstore.Kind(id.level), Number: id.n}
}

// parent returns the page that has the bit of this one.
func (id pageID) parent() pageID { return pageID{id.level + 1, id.n / bitsPerPage} }

// blocksOf returns the number of blocks of size bytes.
func blocksOf(size int64) uint64 { return uint64(size) / kvstore.BlockSize }

// pagesOf returns how many pages n bits need.
func pagesOf(n uint64) uint64 { return (n + bitsPerPage - 1) / bitsPerPage }

// MapHeight returns how many levels the presence map of a volume of size bytes
// has: the smallest number with which the top level is one page.
func MapHeight(size int64) uint8 {
	h := uint8(1)
	for n := pagesOf(blocksOf(size)); n > 1; n = pagesOf(n) {
		h++
	}
	return h
}

// bitsAt returns how many bits level has in a volume of so many blocks: blocks
// for level 0, pages of the level below for the others.
func bitsAt(blocks uint64, level int) uint64 {
	for ; level > 0; level-- {
		blocks = pagesOf(blocks)
	}
	return blocks
}

// pageVersion orders the contents that one page had: by generation of the
// holder, then by sequence within it.
type pageVersion struct{ generation, sequence uint64 }

// putPage encodes a page. The words of the bitmap are in the machine's own order
// in memory and little-endian in the page, so that bit n is always bit n%8 of
// byte 32+n/8. Words are loaded one by one, atomically.
func putPage(dst []byte, layer kvstore.LayerID, id pageID, ver pageVersion, words []uint64) {
	_ = dst[kvstore.BlockSize-1]
	copy(dst, pageMagic[:])
	binary.BigEndian.PutUint32(dst[4:], uint32(layer))
	binary.BigEndian.PutUint64(dst[8:], uint64(kvstore.KindMap+kvstore.Kind(id.level))<<56|id.n)
	binary.BigEndian.PutUint64(dst[16:], ver.generation)
	binary.BigEndian.PutUint64(dst[24:], ver.sequence)
	if words == nil {
		clear(dst[pageHeader:kvstore.BlockSize])
		return
	}
	for i := range wordsPerPage {
		binary.LittleEndian.PutUint64(dst[pageHeader+8*i:], atomic.LoadUint64(&words[i]))
	}
}

// setPageBit sets bit n of an encoded page.
func setPageBit(page []byte, n uint64) { page[pageHeader+n/8] |= 1 << (n % 8) }

// pageWord returns word i of an encoded page.
func pageWord(page []byte, i int) uint64 {
	return binary.LittleEndian.Uint64(page[pageHeader+8*i:])
}

// parsePage checks the header of a page and returns its version.
func parsePage(page []byte, layer kvstore.LayerID, id pageID) (pageVersion, error) {
	want := uint64(kvstore.KindMap+kvstore.Kind(id.level))<<56 | id.n
	if len(page) != kvstore.BlockSize || [4]byte(page[:4]) != pageMagic ||
		binary.BigEndian.Uint32(page[4:]) != uint32(layer) || binary.BigEndian.Uint64(page[8:]) != want {
		return pageVersion{}, fmt.Errorf("%s: %w", id.key(layer), errBadPage)
	}
	return pageVersion{binary.BigEndian.Uint64(page[16:]), binary.BigEndian.Uint64(page[24:])}, nil
}
