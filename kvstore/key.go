package kvstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// LayerID names one layer of one volume, everywhere and for ever: ids are
// random, claimed on every server and never used again, so a block of a deleted
// volume can never show up in another one.
type LayerID uint32

// String returns the id as eight hexadecimal digits.
func (l LayerID) String() string { return fmt.Sprintf("%08x", uint32(l)) }

// Kind says what a block is for.
type Kind uint8

const (
	// KindBlock is a block of the volume; Number is its LBA.
	KindBlock Kind = 0
	// KindMap is a page of the presence map, one bit per block. KindMap+1 is a
	// page of the tree above it, one bit per KindMap page, and so on up to
	// KindMapTop; Number is the page's number in its level.
	KindMap Kind = 1
	// KindMapTop is the highest level that can exist: 3 levels above the bits
	// cover 32512^3 blocks, far beyond MaxNumber's practical use.
	KindMapTop Kind = 4
)

// MaxNumber is the largest Key.Number: seven bytes.
const MaxNumber = 1<<56 - 1

// KeySize is the size of an encoded key in bytes.
const KeySize = 12

// Key names one block of a store.
type Key struct {
	Layer  LayerID
	Kind   Kind
	Number uint64 // at most MaxNumber
}

// Put encodes k into b: layer, kind, number, big-endian, KeySize bytes.
func (k Key) Put(b []byte) {
	_ = b[KeySize-1]
	binary.BigEndian.PutUint64(b[4:], k.Number)
	b[4] = byte(k.Kind)
	binary.BigEndian.PutUint32(b, uint32(k.Layer))
}

// ParseKey decodes what Put encoded. b must have KeySize bytes.
func ParseKey(b []byte) Key {
	_ = b[KeySize-1]
	return Key{
		Layer:  LayerID(binary.BigEndian.Uint32(b)),
		Kind:   Kind(b[4]),
		Number: binary.BigEndian.Uint64(b[4:]) & MaxNumber,
	}
}

// String is for people and logs: layer/kind/number.
func (k Key) String() string {
	switch {
	case k.Kind == KindBlock:
		return fmt.Sprintf("block %d of layer %s", k.Number, k.Layer)
	default:
		return fmt.Sprintf("map page %d/%d of layer %s", k.Kind-KindMap, k.Number, k.Layer)
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seed returns the CRC seed of a layer: the CRC32C of its uuid.
func Seed(uuid [16]byte) uint32 { return crc32.Checksum(uuid[:], castagnoli) }

// Checksum returns the CRC32C of a block, begun with the layer's seed and taken
// over the encoded key and the data: a block that was swapped with another one,
// of this layer or any other, does not pass.
//
// It allocates nothing. The Castagnoli polynomial has an instruction on amd64
// and arm64, which hash/crc32 uses. The key goes through the table here, because
// hash/crc32 lets its argument escape to the heap.
func Checksum(seed uint32, k Key, data []byte) uint32 {
	if Unchecked {
		return 0
	}
	var raw [KeySize]byte
	k.Put(raw[:])
	crc := ^seed
	for _, b := range raw {
		crc = castagnoli[byte(crc)^b] ^ crc>>8
	}
	return crc32.Update(^crc, castagnoli, data)
}
