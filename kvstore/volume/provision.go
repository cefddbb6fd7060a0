package volume

import (
	"hash/maphash"
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

// A journal that goes on is not enough: what it holds must get to its place. A
// new block of a directory, say, is written into the journal first, and the file
// system does not survive that its place cannot be written afterwards. So the
// contents that went through the provisioned range, either way, are remembered,
// and a new block of such a content is vital: a full store takes it from its
// reserve. What users write does not go through a journal, and gets ErrFull.

// provisioned is the set of blocks that were asked for. The zero value is empty.
type provisioned struct {
	mu      sync.Mutex               // of those who change it
	extents atomic.Pointer[[]extent] // sorted, apart from each other; never changed in place
	// contents are set before extents are.
	contents atomic.Pointer[contents]
}

// contents remembers hashes of blocks. Each has two places; a third content of
// both drives one out. 256 KiB: the blocks of a journal of 128 MiB.
type contents [1 << 15]atomic.Uint64

var contentSeed = maphash.MakeSeed()

func places(h uint64) (a, b uint64) { return h >> 1 & (1<<15 - 1), h >> 16 & (1<<15 - 1) }

// note remembers the content of a block that is read or written, if the block is
// in the set.
func (p *provisioned) note(lba uint64, data []byte) {
	if p.extents.Load() == nil || !p.has(lba) {
		return
	}
	c := p.contents.Load()
	h := maphash.Bytes(contentSeed, data) | 1 // 0: none
	a, b := places(h)
	switch old := c[a].Load(); {
	case old == h || c[b].Load() == h:
	case old == 0 || (c[b].Load() != 0 && h>>63 == 0):
		c[a].Store(h)
	default:
		c[b].Store(h)
	}
}

// noted says whether the content of a block was noted lately.
func (p *provisioned) noted(data []byte) bool {
	c := p.contents.Load()
	if c == nil {
		return false
	}
	h := maphash.Bytes(contentSeed, data) | 1
	a, b := places(h)
	return c[a].Load() == h || c[b].Load() == h
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
	if p.contents.Load() == nil {
		p.contents.Store(new(contents))
	}
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
