package memcached

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// unsafeSlice returns the memory of a vector.
func unsafeSlice(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }
