package cache

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"github.com/kvbfs/kvbfs/kvstore"
)

// ways is how many blocks a set has room for. Sets of 16 lost less than half a
// percent of hits against one queue over the whole cache (docs/cache.md).
const ways = 16

// ghosts is how many fingerprints of blocks that were missed a set remembers:
// as many as make its head one cache line.
const ghosts = 12

// set is the head of a set: all that a miss touches, in one cache line.
type set struct {
	tags    [ways / 4]atomic.Uint64   // a fingerprint of 16 bits per way
	ghost   [ghosts / 4]atomic.Uint64 // fingerprints of misses, a queue: the newest in the lowest bits
	control atomic.Uint32             // locked, room, hand
	// writers is how many writes and discards of blocks of this set are under way:
	// while there are some nothing is filled.
	writers atomic.Int32
}

var _ = [1]struct{}{}[unsafe.Sizeof(set{})-64]

// Bits of set.control.
const (
	locked   = 1 << 0 // who has it may give ways to other blocks, and owns the hand
	room     = 1 << 1 // there may be a way without a block
	handBits = 8      // the hand of the clock: which way is looked at next
)

// way is one block's place. The key is changed by who holds the set's lock, and
// only between two generations of the word: who reads a word, then the key, and
// then swaps the same word, has read the key of that word.
type way struct {
	word   atomic.Uint64
	number atomic.Uint64
	layer  atomic.Uint32
	epoch  atomic.Uint32 // of the layer when the block was given its place
}

var _ = [1]struct{}{}[unsafe.Sizeof(way{})-24]

// overhead is what a set takes beside its blocks, in bytes.
const overhead = int64(unsafe.Sizeof(set{}) + ways*unsafe.Sizeof(way{}))

// The word of a way: state, how often it was used lately, where it came from, who
// is copying out of it, and a generation that is new for each block.
//
//	empty --reserve--> filling --publish--> valid --evict, kill--> empty
//	                      |                   |
//	                      kill--> empty       a write--> writing --publish--> valid
//	                                                        |
//	                                                        kill--> empty
//
// The buffer belongs to who filled in the state filling or writing and has a pin
// for it; in the state valid nobody writes to it. An empty way may be pinned still:
// by who copies out of it, or by who filled it when it was killed. It is given to
// another block when the last pin is gone.
const (
	stateMask = 3
	empty     = 0
	filling   = 1
	writing   = 2
	valid     = 3

	freqUnit = 1 << 2 // 3 bits: hits, up to 7
	freqMask = 7 << 2
	aheadBit = 1 << 5 // read ahead, not asked for yet
	spentBit = 1 << 6 // read ahead and asked for once: the first to go
	pinUnit  = 1 << 8 // 16 bits
	pinMask  = 0xffff << 8
	genUnit  = 1 << 24 // the rest
	genMask  = ^uint64(genUnit - 1)
)

// table is the sets and their blocks. All methods are safe for concurrent use.
type table struct {
	sets   []set
	ways   []way
	arena  []byte
	blocks atomic.Int64 // that are valid
	evicts atomic.Uint64
	wasted atomic.Uint64 // read ahead, and evicted without having been asked for
}

// newTable makes a table that takes at most size bytes, all counted.
func newTable(size int64) (*table, error) {
	n := max(size/(ways*kvstore.BlockSize+overhead), 1)
	arena, err := newArena(n * ways * kvstore.BlockSize)
	if err != nil {
		return nil, err
	}
	t := &table{sets: make([]set, n), ways: make([]way, n*ways), arena: arena}
	for i := range t.sets {
		t.sets[i].control.Store(room)
	}
	return t, nil
}

// place is where a key is looked for.
type place struct {
	set  uint32
	tag  uint16
	hash uint64
}

func (t *table) place(k kvstore.Key) place {
	h := (k.Number ^ uint64(k.Layer)<<40 ^ uint64(k.Layer)>>24) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 32
	// The high half chooses the set, by multiplication instead of division.
	s := uint32(h >> 32 * uint64(len(t.sets)) >> 32)
	return place{set: s, tag: uint16(h) | 1, hash: h}
}

// data is the buffer of a slot.
func (t *table) data(slot uint32) []byte {
	at := int(slot) * kvstore.BlockSize
	return t.arena[at : at+kvstore.BlockSize : at+kvstore.BlockSize]
}

const lanes = 0x0001_0001_0001_0001

// find returns the slot of a key and its word, in whatever state but empty; ok is
// false if the key has none.
func (t *table) find(p place, k kvstore.Key) (slot uint32, word uint64, ok bool) {
	s := &t.sets[p.set]
	for i := range s.tags {
		x := s.tags[i].Load() ^ uint64(p.tag)*lanes
		// A lane that is zero has its top bit set here; a false one is found out below.
		for m := (x - lanes) & ^x & (lanes << 15); m != 0; m &= m - 1 {
			slot := p.set*ways + uint32(i*4+bits.TrailingZeros64(m)/16)
			w := &t.ways[slot]
			word := w.word.Load()
			if word&stateMask != empty && w.number.Load() == k.Number && w.layer.Load() == uint32(k.Layer) && w.word.Load()&genMask == word&genMask {
				return slot, word, true
			}
		}
	}
	return 0, 0, false
}

// pin makes a valid block safe to copy out of. It fails if the block is not what
// word says any more.
func (t *table) pin(slot uint32, word uint64) bool {
	w := &t.ways[slot]
	for {
		if word&stateMask != valid || word&pinMask == pinMask {
			return false
		}
		next := word + pinUnit
		switch {
		case word&aheadBit != 0:
			next = next&^aheadBit | spentBit
		case word&freqMask != freqMask:
			next = (next + freqUnit) &^ spentBit
		}
		if w.word.CompareAndSwap(word, next) {
			return true
		}
		now := w.word.Load()
		if now&genMask != word&genMask {
			return false
		}
		word = now
	}
}

// unpin ends what pin, reserve or seize began.
func (t *table) unpin(slot uint32) { t.ways[slot].word.Add(^uint64(pinUnit - 1)) }

// recall says whether a block was missed lately, and remembers that it was missed
// now. It takes no lock: when two workers meet, a fingerprint may be lost.
func (s *set) recall(tag uint16) bool {
	pattern := uint64(tag) * lanes
	var g [len(s.ghost)]uint64
	for i := range s.ghost {
		g[i] = s.ghost[i].Load()
		x := g[i] ^ pattern
		if m := (x - lanes) & ^x & (lanes << 15); m != 0 {
			lane := bits.TrailingZeros64(m) / 16 * 16
			s.ghost[i].Store(g[i] &^ (0xffff << lane))
			return true
		}
	}
	for i := len(g) - 1; i > 0; i-- {
		s.ghost[i].Store(g[i]<<16 | g[i-1]>>48)
	}
	s.ghost[0].Store(g[0]<<16 | uint64(tag))
	return false
}

// hasRoom says whether a block can be taken in without another one going.
func (s *set) hasRoom() bool { return s.control.Load()&room != 0 }

// reserve gives a block a place to be filled, with a pin for who fills it. flags
// are bits of the word. It fails if the block has one, if a change of a block of
// the set is under way, or if the set is in somebody else's hands at this moment:
// nobody waits to be cached.
func (t *table) reserve(p place, k kvstore.Key, l *layer, flags uint64) (slot uint32, ok bool) {
	s := &t.sets[p.set]
	c := s.control.Load()
	if c&locked != 0 || !s.control.CompareAndSwap(c, c|locked) {
		return 0, false
	}
	epoch := l.epoch.Load()
	if old, _, found := t.find(p, k); found {
		if t.ways[old].epoch.Load() == epoch {
			s.control.And(^uint32(locked))
			return 0, false
		}
		t.kill(p, k) // of before the layer was dropped
	}
	slot, ok = t.vacate(p.set, c)
	if !ok {
		s.control.And(^uint32(locked))
		return 0, false
	}
	w := &t.ways[slot]
	w.number.Store(k.Number)
	w.layer.Store(uint32(k.Layer))
	w.epoch.Store(epoch)
	lane := slot % 4 * 16
	tags := &s.tags[slot%ways/4]
	tags.Store(tags.Load()&^(0xffff<<lane) | uint64(p.tag)<<lane)
	w.word.Store(w.word.Load()&genMask | pinUnit | filling | flags)
	s.control.And(^uint32(locked))
	// Whoever changes a block counts itself first and then looks for it; we put it
	// there first and then look at the count: one of us sees the other.
	if s.writers.Load() != 0 || l.changing.Load() != 0 {
		t.release(slot)
		return 0, false
	}
	return slot, true
}

// vacate makes a way free: one without a block, else by the clock. The way is
// empty, has a new generation, and the caller's pin. The set is locked; control
// is what it was before.
func (t *table) vacate(set, control uint32) (slot uint32, ok bool) {
	first := set * ways
	if control&room != 0 {
		for i := range uint32(ways) {
			w := &t.ways[first+i].word
			if word := w.Load(); word&(stateMask|pinMask) == empty && w.CompareAndSwap(word, word&genMask+genUnit|pinUnit) {
				return first + i, true
			}
		}
		t.sets[set].control.And(^uint32(room))
	}
	for i := range uint32(ways) { // what was read ahead and used is of no more use
		if word := t.ways[first+i].word.Load(); word&spentBit != 0 && t.evict(first+i, word) {
			return first + i, true
		}
	}
	hand := control >> handBits
	for range ways * (freqMask/freqUnit + 2) {
		slot := first + hand
		hand = (hand + 1) % ways
		w := &t.ways[slot].word
		word := w.Load()
		if word&stateMask == valid && word&freqMask != 0 {
			w.CompareAndSwap(word, word-freqUnit)
			continue
		}
		if t.evict(slot, word) {
			t.sets[set].turn(hand)
			return slot, true
		}
	}
	return 0, false
}

// turn notes where the hand stands. The set is locked.
func (s *set) turn(hand uint32) {
	for {
		c := s.control.Load()
		if s.control.CompareAndSwap(c, c&(1<<handBits-1)|hand<<handBits) {
			return
		}
	}
}

// evict empties a way that nobody works on.
func (t *table) evict(slot uint32, word uint64) bool {
	if word&pinMask != 0 || word&stateMask != valid && word&stateMask != empty {
		return false
	}
	if !t.ways[slot].word.CompareAndSwap(word, word&genMask+genUnit|pinUnit) {
		return false
	}
	if word&stateMask == valid {
		t.blocks.Add(-1)
		t.evicts.Add(1)
		if word&aheadBit != 0 {
			t.wasted.Add(1)
		}
	}
	return true
}

// publish makes a filled or written block valid and gives back the pin. False:
// it was killed meanwhile, or somebody still copies the old data out of it.
func (t *table) publish(slot uint32) bool {
	w := &t.ways[slot].word
	for {
		word := w.Load()
		if word&stateMask == empty || word&pinMask != pinUnit {
			t.release(slot)
			return false
		}
		if w.CompareAndSwap(word, word&^pinMask|valid) {
			t.blocks.Add(1)
			return true
		}
	}
}

// release empties a way that the caller filled, and gives back its pin.
func (t *table) release(slot uint32) {
	w := &t.ways[slot].word
	for {
		word := w.Load()
		if w.CompareAndSwap(word, word&^(stateMask|aheadBit|spentBit|freqMask)-pinUnit) {
			t.sets[slot/ways].control.Or(room)
			return
		}
	}
}

// kill makes sure that a block, and a fill of it that is under way, is not served
// any more.
func (t *table) kill(p place, k kvstore.Key) {
	for {
		slot, word, ok := t.find(p, k)
		if !ok {
			return
		}
		if !t.ways[slot].word.CompareAndSwap(word, word&^(stateMask|aheadBit|spentBit|freqMask)) {
			continue
		}
		if word&stateMask == valid {
			t.blocks.Add(-1)
		}
		t.sets[p.set].control.Or(room)
		return
	}
}

// seize takes a valid block out of service for the time of a write of it: nobody
// reads it, and the caller, who has a pin, may fill it anew with exclusive use if
// alone says so. A fill or another write that is under way is killed.
func (t *table) seize(p place, k kvstore.Key) (slot uint32, ok bool) {
	for {
		slot, word, found := t.find(p, k)
		if !found {
			return 0, false
		}
		if word&stateMask != valid || word&pinMask == pinMask {
			t.kill(p, k)
			return 0, false
		}
		if t.ways[slot].word.CompareAndSwap(word, word&^(stateMask|aheadBit|spentBit)+pinUnit|writing) {
			t.blocks.Add(-1)
			return slot, true
		}
	}
}

// alone says that the caller, who has a pin and took the block out of service, is
// the only one who has it. It stays so.
func (t *table) alone(slot uint32) bool {
	word := t.ways[slot].word.Load()
	return word&pinMask == pinUnit && word&stateMask != empty
}
