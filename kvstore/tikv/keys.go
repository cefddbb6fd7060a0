package tikv

import (
	"encoding/binary"

	"github.com/kvbfs/kvbfs/kvstore"
)

// All keys begin with prefix and a letter:
//
//	b  block: layer, kind, number, as Key.Put has them -> data and checksum
//	c  claim of a layer: its id, 4 bytes, big-endian -> 8 random bytes
//	r  record: its name -> 8 random bytes, the version, and the value
//	o  mark of a process that changes blocks: its name (predecessor.go) -> one byte
const prefix = "kvbfs\x00"

// sumSize is the length of the checksum behind a block's data.
const sumSize = 4

func blockKey(k kvstore.Key) []byte {
	b := make([]byte, len(prefix)+1+kvstore.KeySize)
	copy(b, prefix+"b")
	k.Put(b[len(prefix)+1:])
	return b
}

// blocksFrom returns the keys between which the blocks [first, first+count) of a layer
// are; count 0: all that follow.
func blocksFrom(id kvstore.LayerID, first, count uint64) (from, to []byte) {
	from = blockKey(kvstore.Key{Layer: id, Number: first})
	if end := first + count; count > 0 && end <= kvstore.MaxNumber {
		return from, blockKey(kvstore.Key{Layer: id, Number: end})
	}
	return from, blockKey(kvstore.Key{Layer: id, Kind: kvstore.KindBlock + 1})
}

// blockNumber is what blockKey was given.
func blockNumber(key []byte) uint64 { return kvstore.ParseKey(key[len(prefix)+1:]).Number }

func claimKey(id kvstore.LayerID) []byte {
	return binary.BigEndian.AppendUint32([]byte(prefix+"c"), uint32(id))
}

func recordKey(name string) []byte { return []byte(prefix + "r" + name) }

// blockValue makes what is stored of a block. It is memory of its own: the client may
// look at it after it has given up.
func blockValue(op *kvstore.Op) []byte {
	value := make([]byte, 0, kvstore.BlockSize+sumSize)
	value = append(value, op.Data...)
	return binary.BigEndian.AppendUint32(value, kvstore.Checksum(op.Seed, op.Key, op.Data))
}

// readValue fills a read with what is stored.
func readValue(op *kvstore.Op, value []byte) error {
	switch len(value) {
	case 0:
		return kvstore.ErrAbsent
	case kvstore.BlockSize + sumSize:
	default:
		return &kvstore.CorruptError{Length: len(value)}
	}
	copy(op.Data, value)
	sum := binary.BigEndian.Uint32(value[kvstore.BlockSize:])
	if sum != kvstore.Checksum(op.Seed, op.Key, op.Data) {
		return &kvstore.CorruptError{Length: kvstore.BlockSize, Sum: sum, Mask: ^uint32(0)}
	}
	return nil
}
