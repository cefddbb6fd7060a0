package volume

import (
	"math/bits"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// presence is the map of one open volume in memory: which blocks exist, which
// keys still wait for their deletion, which pages must be stored.
//
// All words are used with atomic operations only, so workers need no lock.
// Order matters, because several words belong together:
//
//   - set: pending bit off, then present bit on, then the page is dirty;
//   - clear: present bit off, then pending bit on, then the page is dirty;
//   - a flush: dirty off, then the copy of the page is taken.
//
// Present and pending both on is harmless: the deletion looks at the present bit
// under the claim of the block, finds it on and drops the pending bit.
//
// The memory of a level 0 page may be touched only if the page exists: in the
// shared mapping it is backed by then (see stateFile.back).
type presence struct {
	// bits[0] has the bit of each block; bits[l+1] the bit of each existing page
	// of level l. A page exists if it and all of its parents were stored.
	bits    [maxLevels + 1][]uint64
	pending []uint64 // key may be in the store though the present bit is off
	dirty   []uint64 // level 0 pages that differ from what is stored
	queued  []uint64 // level 0 pages that may have pending bits
	seq     []uint64 // sequence of each level 0 page, raised before it is copied

	count atomic.Int64 // present bits
	pend  atomic.Int64 // pending bits, never less than there are
}

// newPresence returns an empty map in private memory for so many blocks, for a
// volume that is read only.
func newPresence(blocks uint64) *presence {
	m := &presence{}
	for l := range m.bits {
		m.bits[l] = make([]uint64, pagesOf(max(1, bitsAt(blocks, l)))*wordsPerPage)
	}
	return m
}

func testBit(w []uint64, n uint64) bool {
	return atomic.LoadUint64(&w[n/64])&(1<<(n%64)) != 0
}

// setBit and clearBit say whether they changed the bit. Looking first keeps the
// common case, no change, free of locked instructions.
func setBit(w []uint64, n uint64) bool {
	b := uint64(1) << (n % 64)
	return atomic.LoadUint64(&w[n/64])&b == 0 && atomic.OrUint64(&w[n/64], b)&b == 0
}

func clearBit(w []uint64, n uint64) bool {
	b := uint64(1) << (n % 64)
	return atomic.LoadUint64(&w[n/64])&b != 0 && atomic.AndUint64(&w[n/64], ^b)&b != 0
}

func (m *presence) hasPage(p uint64) bool { return testBit(m.bits[1], p) }

func (m *presence) present(lba uint64) bool {
	return kvstore.Unchecked || m.hasPage(lba/bitsPerPage) && testBit(m.bits[0], lba)
}

func (m *presence) isPending(lba uint64) bool {
	return m.hasPage(lba/bitsPerPage) && testBit(m.pending, lba)
}

// set notes that a block was stored. Its page exists; the caller has the claim.
func (m *presence) set(lba uint64) {
	if kvstore.Unchecked {
		return
	}
	if clearBit(m.pending, lba) {
		m.pend.Add(-1)
	}
	if setBit(m.bits[0], lba) {
		m.count.Add(1)
		setBit(m.dirty, lba/bitsPerPage)
	}
}

// suspect notes that a key may be in the store although its bit is off: the
// outcome of its write is unknown.
func (m *presence) suspect(lba uint64) {
	if setBit(m.pending, lba) {
		m.pend.Add(1)
	}
	setBit(m.queued, lba/bitsPerPage)
}

// clear notes that count blocks are discarded and returns how many were present.
// It takes no claim and costs one word operation per 64 blocks of pages that
// exist.
func (m *presence) clear(first, count uint64) (gone int64) {
	for count > 0 {
		page := first / bitsPerPage
		n := min(count, (page+1)*bitsPerPage-first)
		if m.hasPage(page) {
			gone += m.clearInPage(page, first, n)
		}
		first, count = first+n, count-n
	}
	return gone
}

func (m *presence) clearInPage(page, first, count uint64) (gone int64) {
	for end := first + count; first < end; {
		n := min(end-first, 64-first%64)
		mask := (^uint64(0) >> (64 - n)) << (first % 64)
		word := &m.bits[0][first/64]
		if atomic.LoadUint64(word)&mask != 0 {
			was := atomic.AndUint64(word, ^mask) & mask
			old := atomic.OrUint64(&m.pending[first/64], was)
			m.pend.Add(int64(bits.OnesCount64(was &^ old)))
			gone += int64(bits.OnesCount64(was))
		}
		first += n
	}
	if gone > 0 {
		m.count.Add(-gone)
		setBit(m.queued, page)
	}
	// Also if nothing changed: another discard of the same blocks may have turned
	// the bits off and not come here yet, and a flush that follows us must store
	// the page.
	setBit(m.dirty, page)
	return gone
}

// copyPage takes a copy of a level 0 page. The sequence rises before the words
// are read: who has seen the same sequence before and after knows that no copy
// was taken between.
func (m *presence) copyPage(dst []byte, layer kvstore.LayerID, p, generation uint64) {
	seq := atomic.AddUint64(&m.seq[p], 1)
	words := m.bits[0][p*wordsPerPage : (p+1)*wordsPerPage]
	putPage(dst, layer, pageID{0, p}, pageVersion{generation, seq}, words)
}

// fill puts n bits of a stored page (nil: all ones, for a page that was lost)
// into the words of its level; bits at limit and beyond stay off. Nobody else
// uses the map yet.
func (m *presence) fill(id pageID, page []byte, limit uint64) {
	base := id.n * wordsPerPage
	for i := range wordsPerPage {
		word := ^uint64(0)
		if page != nil {
			word = pageWord(page, i)
		}
		first := (base + uint64(i)) * 64
		switch {
		case first >= limit:
			word = 0
		case limit-first < 64:
			word &= 1<<(limit-first) - 1
		}
		m.bits[id.level][base+uint64(i)] = word
	}
}

// recount sets the counters, and the queue of pages with pending bits, from the
// words. Nobody else uses the map yet.
func (m *presence) recount() {
	var count, pend int64
	for p := range m.pages() {
		waiting := int64(0)
		for i := p * wordsPerPage; i < (p+1)*wordsPerPage; i++ {
			count += int64(bits.OnesCount64(m.bits[0][i]))
			if m.pending != nil {
				waiting += int64(bits.OnesCount64(m.pending[i]))
			}
		}
		if waiting > 0 {
			setBit(m.queued, p)
		}
		pend += waiting
	}
	m.count.Store(count)
	m.pend.Store(pend)
}

// pages ranges over the numbers of the level 0 pages that exist.
func (m *presence) pages() func(yield func(uint64) bool) {
	return func(yield func(uint64) bool) { eachBit(m.bits[1], yield) }
}

// eachBit ranges over the bits that are on.
func eachBit(w []uint64, yield func(uint64) bool) {
	for i := range w {
		for word := atomic.LoadUint64(&w[i]); word != 0; word &= word - 1 {
			if !yield(uint64(i)*64 + uint64(bits.TrailingZeros64(word))) {
				return
			}
		}
	}
}

// next returns the first block at or after from, and before limit, that is
// present (want true) or not; limit if there is none.
func (m *presence) next(from, limit uint64, want bool) uint64 {
	for from < limit {
		page := from / bitsPerPage
		end := min(limit, (page+1)*bitsPerPage)
		if !m.hasPage(page) {
			if !want {
				return from
			}
			from = end
			continue
		}
		for from < end {
			word := atomic.LoadUint64(&m.bits[0][from/64])
			if !want {
				word = ^word
			}
			if word &= ^uint64(0) << (from % 64); word != 0 {
				return min(limit, from/64*64+uint64(bits.TrailingZeros64(word)))
			}
			from = from/64*64 + 64
		}
	}
	return limit
}
