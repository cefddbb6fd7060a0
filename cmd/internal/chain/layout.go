package chain

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// span is a range of bytes of a volume.
type span struct{ off, n int64 }

// layout says where a file system keeps what it must be able to write even when
// the store is full.
type layout struct {
	// journal, or log, as it is called in XFS.
	journal []span
	// metadata that comes into being later: bitmaps and the first tables of
	// inodes. The more important come first.
	metadata []span
}

func (l *layout) journalSize() int64 { return total(l.journal) }

func total(spans []span) (n int64) {
	for _, s := range spans {
		n += s.n
	}
	return n
}

// appendSpan joins what touches the last one.
func appendSpan(spans []span, s span) []span {
	if last := len(spans) - 1; last >= 0 && spans[last].off+spans[last].n == s.off {
		spans[last].n += s.n
		return spans
	}
	return append(spans, s)
}

// reader reads n bytes of a file system.
type reader func(off int64, n int) ([]byte, error)

var errLayout = errors.New("its structure is not understood")

// layoutOf finds the layout of a file system that is not mounted. budget bounds
// the metadata in bytes.
func layoutOf(name string, budget int64, read reader) (layout, error) {
	switch name {
	case "ext4":
		return ext4Layout(budget, read)
	case "xfs":
		return xfsLayout(read)
	}
	return layout{}, nil
}

// ext4 is what the superblock says; all addresses are in blocks.
type ext4 struct {
	read                reader
	bs, blocks          int64
	first, perGroup     int64
	inodeBlocks         int64 // per group
	descSize            int64
	incompat            uint32
	journalMap          []byte // i_block of the journal's inode
	haveMap, hasJournal bool
}

const (
	ext4MetaBG  = 0x10
	ext464Bit   = 0x80
	ext4Journal = 0x4 // compatible feature
)

func ext4Super(read reader) (*ext4, error) {
	sb, err := read(1024, 1024)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(sb) < 1024 || le.Uint16(sb[56:]) != 0xef53 || le.Uint32(sb[24:]) > 6 {
		return nil, errLayout
	}
	e := &ext4{read: read, bs: 1024 << le.Uint32(sb[24:]), blocks: int64(le.Uint32(sb[4:])), first: int64(le.Uint32(sb[20:])),
		perGroup: int64(le.Uint32(sb[32:])), descSize: 32, incompat: le.Uint32(sb[96:])}
	if e.incompat&ext464Bit != 0 {
		e.blocks |= int64(le.Uint32(sb[0x150:])) << 32
		e.descSize = int64(le.Uint16(sb[0xfe:]))
	}
	e.inodeBlocks = int64(le.Uint32(sb[40:])) * int64(le.Uint16(sb[88:])) / e.bs
	if e.perGroup == 0 || e.perGroup > 8*e.bs || e.descSize < 32 || e.descSize > 1024 || e.blocks <= 0 || e.blocks > 1<<48 {
		return nil, errLayout
	}
	// The superblock has a copy of the journal's block map (s_jnl_blocks), which
	// mke2fs and tune2fs keep.
	e.hasJournal = le.Uint32(sb[92:])&ext4Journal != 0 && le.Uint32(sb[0xe0:]) != 0
	e.journalMap, e.haveMap = sb[0x10c:0x10c+60], sb[0xfd] == 1
	return e, nil
}

func ext4Layout(budget int64, read reader) (l layout, err error) {
	e, err := ext4Super(read)
	if err != nil {
		return l, err
	}
	if e.hasJournal {
		if !e.haveMap {
			return l, errLayout
		}
		nodes := 0
		if l.journal, err = e.extents(nil, e.journalMap, 5, &nodes); err != nil {
			return l, err
		}
	}
	if e.incompat&ext4MetaBG != 0 {
		return l, nil // descriptors are elsewhere
	}
	l.metadata, err = e.metadata(budget)
	return l, err
}

// extents appends what a node of an extent tree, of at most depth, maps.
func (e *ext4) extents(to []span, node []byte, depth int, nodes *int) ([]span, error) {
	le := binary.LittleEndian
	const header, entry = 12, 12
	n, level := int(le.Uint16(node[2:])), int(le.Uint16(node[6:]))
	if *nodes++; le.Uint16(node) != 0xf30a || header+n*entry > len(node) || level > depth || *nodes > 64 {
		return nil, errLayout
	}
	for i := range n {
		x := node[header+i*entry:]
		if level == 0 {
			count := int64(le.Uint16(x[4:]))
			if count > 1<<15 {
				count -= 1 << 15 // not initialised
			}
			start := int64(le.Uint16(x[6:]))<<32 | int64(le.Uint32(x[8:]))
			if start+count > e.blocks {
				return nil, errLayout
			}
			to = appendSpan(to, span{start * e.bs, count * e.bs})
			continue
		}
		child := int64(le.Uint16(x[8:]))<<32 | int64(le.Uint32(x[4:]))
		if child >= e.blocks || level == 0 {
			return nil, errLayout
		}
		b, err := e.read(child*e.bs, int(e.bs))
		if err == nil && len(b) < int(e.bs) {
			err = errLayout
		}
		if err == nil {
			to, err = e.extents(to, b, level-1, nodes)
		}
		if err != nil {
			return nil, err
		}
	}
	return to, nil
}

// metadata returns the bitmaps of all groups, then the tables of inodes from the
// first group on, as far as the budget goes.
func (e *ext4) metadata(budget int64) (spans []span, err error) {
	left := budget / e.bs
	groups := min((e.blocks-e.first+e.perGroup-1)/e.perGroup, left/2)
	desc, err := e.read((e.first+1)*e.bs, int(groups*e.descSize))
	if err != nil {
		return nil, err
	}
	groups = min(groups, int64(len(desc))/e.descSize)
	add := func(g int64, at int, count int64) {
		d := desc[g*e.descSize:]
		block := int64(binary.LittleEndian.Uint32(d[at:]))
		if e.descSize >= 64 {
			block |= int64(binary.LittleEndian.Uint32(d[at+32:])) << 32
		}
		count = min(count, left)
		if count > 0 && block > 0 && block+count <= e.blocks {
			spans = appendSpan(spans, span{block * e.bs, count * e.bs})
			left -= count
		}
	}
	for _, bitmap := range []int{0, 4} {
		for g := range groups {
			add(g, bitmap, 1)
		}
	}
	for g := range groups {
		add(g, 8, e.inodeBlocks)
	}
	return spans, nil
}

// xfsLayout finds the log. XFS keeps all other metadata in memory and tries again
// while there is no space; only a log that cannot be written ends it.
func xfsLayout(read reader) (l layout, err error) {
	sb, err := read(0, 512)
	if err != nil {
		return l, err
	}
	be := binary.BigEndian
	if len(sb) < 512 || string(sb[:4]) != "XFSB" {
		return l, errLayout
	}
	bs, start, agBlocks, log := int64(be.Uint32(sb[4:])), be.Uint64(sb[48:]), int64(be.Uint32(sb[84:])), int64(be.Uint32(sb[96:]))
	agShift := sb[124]
	if bs < 512 || bs > 64<<10 || agShift > 31 || start>>agShift > 1<<31 {
		return l, errLayout
	}
	if start == 0 {
		return l, nil // the log is on another device
	}
	block := int64(start>>agShift)*agBlocks + int64(start&(1<<agShift-1))
	if blocks := int64(be.Uint64(sb[8:])); block+log > blocks {
		return l, fmt.Errorf("%w: its log ends beyond it", errLayout)
	}
	l.journal = []span{{block * bs, log * bs}}
	return l, nil
}
