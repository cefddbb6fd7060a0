package kvstore

import (
	"fmt"
	"math/bits"
)

// CorruptError says what a store found under a key instead of its block. It wraps
// ErrCorrupt. If Length is BlockSize, Op.Data holds what was read: who asked may
// look where it came from ([CorruptError.Origin]), and must not give it out.
type CorruptError struct {
	Length int    // bytes of the stored value
	Sum    uint32 // the checksum that is stored with it
	// Mask has the bits of Sum that the store keeps; 0: what is stored has no
	// checksum, so it is not a block of kvbfs.
	Mask uint32
}

func (e *CorruptError) Error() string {
	switch {
	case e.Length != BlockSize:
		return fmt.Sprintf("%v: it has %d bytes", ErrCorrupt, e.Length)
	case e.Mask == 0:
		return fmt.Sprintf("%v: it is not a block of kvbfs", ErrCorrupt)
	}
	return fmt.Sprintf("%v: wrong checksum", ErrCorrupt)
}

func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// Origin looks for the block that data would be right for: the number, below
// limit, of a block of that layer and kind whose checksum it has. ok is false if
// there is none, so what was read is damaged and not misplaced.
//
// A CRC can be run backwards, so this takes microseconds. Any data has a chance of
// limit / 2^31 to be taken for some block of a layer: good enough for a message.
func (e *CorruptError) Origin(seed uint32, layer LayerID, kind Kind, limit uint64, data []byte) (number uint64, ok bool) {
	if e.Length != BlockSize || e.Mask == 0 || limit == 0 {
		return 0, false
	}
	// The bits that are not stored can be anything; memcached lacks one.
	missing := ^e.Mask
	for some := missing; ; some = (some - 1) & missing {
		end := unwind(^(e.Sum&e.Mask | some), data)
		end = unwind(end, make([]byte, 4))
		for high := uint64(0); high <= (limit-1)>>32; high++ {
			var raw [KeySize]byte
			Key{Layer: layer, Kind: kind, Number: high << 32}.Put(raw[:])
			begin := ^seed
			for _, b := range raw[:KeySize-4] {
				begin = castagnoli[byte(begin)^b] ^ begin>>8
			}
			// Four bytes are fed into the register as if they had been in it: what
			// differs is the end of the key.
			n := high<<32 | uint64(bits.ReverseBytes32(begin^end))
			if n < limit {
				return n, true
			}
		}
		if some == 0 {
			return 0, false
		}
	}
}

// unwind returns the CRC register before data went through it.
func unwind(register uint32, data []byte) uint32 {
	for i := len(data) - 1; i >= 0; i-- {
		t := castagnoliTop[register>>24]
		register = (register^castagnoli[t])<<8 | uint32(t^data[i])
	}
	return register
}

// castagnoliTop finds the entry of the table with a given first byte: each byte
// is the first of one entry.
var castagnoliTop = func() (index [256]byte) {
	for i, entry := range castagnoli {
		index[entry>>24] = byte(i)
	}
	return index
}()
