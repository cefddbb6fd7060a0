package volume

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Provisioning gives a block that is a hole a place in the store: it is stored,
// as zeros, though blocks of zeros are not stored otherwise. From then on a write
// of it is an overwrite, which a full store with a reserve still takes. A journal
// that is written round and round needs this: it must not meet ENOSPC.
//
// A write of zeros over a stored block drops it, in general. Over one that was
// provisioned since the volume was opened it is stored instead, or a journal
// would lose its place block by block to the blocks of zeros that it logs. That
// is remembered in memory only: who relies on it provisions again after the
// volume was opened, which costs nothing for what is there. A discard drops the
// block and the promise with it.

// provisioned is the set of blocks that were asked for. The zero value is empty.
type provisioned struct {
	mu      sync.Mutex               // of those who change it
	extents atomic.Pointer[[]extent] // sorted, apart from each other; never changed in place
}

// maxProvisioned bounds the list. What comes after it is provisioned, but gets no
// protection from writes of zeros.
const maxProvisioned = 4096

// has says whether a block is in the set. It is asked of blocks of zeros only.
func (p *provisioned) has(lba uint64) bool {
	list := p.extents.Load()
	if list == nil {
		return false
	}
	_, found := slices.BinarySearchFunc(*list, lba, func(e extent, lba uint64) int {
		switch {
		case e.has(lba):
			return 0
		case e.first < lba:
			return -1
		}
		return 1
	})
	return found
}

// add puts blocks into the set.
func (p *provisioned) add(first, count uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var old []extent
	if list := p.extents.Load(); list != nil {
		old = *list
	}
	// All that overlaps or touches the new extent becomes one with it.
	from, _ := slices.BinarySearchFunc(old, first, func(e extent, first uint64) int {
		if e.first+e.count < first {
			return -1
		}
		return 1
	})
	to, end := from, first+count
	for ; to < len(old) && old[to].first <= end; to++ {
		first, end = min(first, old[to].first), max(end, old[to].first+old[to].count)
	}
	list := slices.Concat(old[:from], []extent{{first, end - first}}, old[to:])
	if len(list) <= maxProvisioned {
		p.extents.Store(&list)
	}
}

// zeros is the block that provisioning stores. Nobody writes to it.
var zeros [kvstore.BlockSize]byte

// provision begins a Provision request: the range grows to whole blocks, as every
// byte of it shall have its place.
func (w *Worker) provision(j *job) error {
	if j.m == nil {
		return kvstore.ErrUnsupported // the store gives no such promise
	}
	const bs = kvstore.BlockSize
	first := j.req.Off / bs
	end := (j.req.Off + j.req.N + bs - 1) / bs
	j.cut = split(first*bs, (end-first)*bs)
	j.end = j.cut.blocks()
	// Before the first of it is stored, so that no write of zeros comes between.
	j.vol.provisioned.add(uint64(first), uint64(end-first))
	return nil
}

// keepsZeros says whether zeros written over a block are stored.
func (v *Volume) keepsZeros(m *presence, lba uint64) bool {
	return v.provisioned.has(lba) && m.present(lba)
}
