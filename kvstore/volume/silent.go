package volume

import (
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Unmapped says whether a write of n bytes at off, which must be within two pages'
// ranges, would have to store a page of the presence map first: some round trips,
// and a wait for a flush that is under way.
func (v *Volume) Unmapped(off, n int64) bool {
	m := v.m.Load()
	if m == nil || n <= 0 {
		return false
	}
	first, last := uint64(off)/kvstore.BlockSize/bitsPerPage, uint64(off+n-1)/kvstore.BlockSize/bitsPerPage
	return !m.hasPage(first) || !m.hasPage(last)
}

// Silent says whether an access to n bytes at off would wait for a server that
// is silent now (kvstore.Store.Silent). It is a hint, and costs an atomic load
// while all servers answer.
func (v *Volume) Silent(off, n int64) bool {
	if n <= 0 || !v.set.store.AnySilent() {
		return false
	}
	st := v.set.store
	m := v.m.Load()
	first, last := uint64(off)/kvstore.BlockSize, uint64(off+n-1)/kvstore.BlockSize
	for lba := first; lba <= last; lba = (lba/pool.SlotBlocks + 1) * pool.SlotBlocks {
		if st.Silent(kvstore.Key{Layer: v.layer, Number: lba}) {
			return true
		}
		// The first write of a range stores a page, which may be anywhere.
		if m != nil && !m.hasPage(lba/bitsPerPage) {
			return true
		}
	}
	return false
}
