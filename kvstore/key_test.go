package kvstore

import (
	"hash/crc32"
	"testing"
)

// The checksum is what hash/crc32 gives over key and data, and allocates nothing.
func TestChecksum(t *testing.T) {
	data := make([]byte, BlockSize)
	rnd := testRand(t)
	for range 100 {
		seed, k := rnd.Uint32(), Key{LayerID(rnd.Uint32()), Kind(rnd.Uint32()), rnd.Uint64() & MaxNumber}
		data[rnd.IntN(len(data))]++
		var raw [KeySize]byte
		k.Put(raw[:])
		want := crc32.Update(crc32.Update(seed, castagnoli, raw[:]), castagnoli, data)
		if got := Checksum(seed, k, data); got != want {
			t.Fatalf("Checksum(%#x, %v) is %#x, want %#x", seed, k, got, want)
		}
		if back := ParseKey(raw[:]); back != k {
			t.Fatalf("%v encoded and parsed is %v", k, back)
		}
	}
	if n := testing.AllocsPerRun(100, func() { Checksum(1, Key{Number: 2}, data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
