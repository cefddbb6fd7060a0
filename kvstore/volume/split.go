package volume

import (
	"encoding/binary"

	"github.com/kvbfs/kvbfs/kvstore"
)

// part is what a byte range has of one block.
type part struct {
	lba      uint64
	from, to int   // bytes of the block
	at       int64 // where the part begins in the range
}

func (p part) whole() bool { return p.to-p.from == kvstore.BlockSize }

// parts is a byte range cut at the borders of blocks: at most one partial block
// at each end, whole blocks between them. A range within one block is a head.
type parts struct {
	head, tail       part
	hasHead, hasTail bool
	first, count     uint64 // the whole blocks
	bodyAt           int64  // where they begin in the range
}

// split cuts the range of n > 0 bytes at off. It is the only place that knows
// how a byte range becomes blocks.
func split(off, n int64) (p parts) {
	const bs = kvstore.BlockSize
	first, end := off, off+n
	if from := first % bs; from != 0 || n < bs {
		to := min(bs, from+n)
		p.head = part{lba: uint64(first / bs), from: int(from), to: int(to)}
		p.hasHead = true
		first += to - from
	}
	p.bodyAt = first - off
	p.first = uint64(first / bs)
	if end > first {
		p.count = uint64((end - first) / bs)
	}
	if rest := end - first - int64(p.count)*bs; rest > 0 {
		p.tail = part{lba: p.first + p.count, to: int(rest), at: n - rest}
		p.hasTail = true
	}
	return p
}

// blocks returns how many blocks the range touches.
func (p *parts) blocks() uint64 {
	n := p.count
	if p.hasHead {
		n++
	}
	if p.hasTail {
		n++
	}
	return n
}

// block returns block i of the range.
func (p *parts) block(i uint64) part {
	if p.hasHead {
		if i == 0 {
			return p.head
		}
		i--
	}
	if i < p.count {
		return part{lba: p.first + i, to: kvstore.BlockSize, at: p.bodyAt + int64(i)*kvstore.BlockSize}
	}
	return p.tail
}

// edge returns partial block i of the range, of those that there are.
func (p *parts) edge(i uint64) part {
	if p.hasHead && i == 0 {
		return p.head
	}
	return p.tail
}

// edges returns how many partial blocks the range has.
func (p *parts) edges() uint64 { return p.blocks() - p.count }

// zero says whether b, a multiple of 8 bytes, is all zero. Data that is not
// nearly always shows it in the first words.
func zero(b []byte) bool {
	for len(b) >= 64 {
		if binary.LittleEndian.Uint64(b)|binary.LittleEndian.Uint64(b[8:])|
			binary.LittleEndian.Uint64(b[16:])|binary.LittleEndian.Uint64(b[24:])|
			binary.LittleEndian.Uint64(b[32:])|binary.LittleEndian.Uint64(b[40:])|
			binary.LittleEndian.Uint64(b[48:])|binary.LittleEndian.Uint64(b[56:]) != 0 {
			return false
		}
		b = b[64:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
