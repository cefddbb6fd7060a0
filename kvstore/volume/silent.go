package volume

import (
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

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
