package chain

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// span is a range of bytes of a volume.
type span struct{ off, n int64 }

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

// journalOf finds the journal (XFS: the log) of a file system that is not mounted.
// There may be none.
func journalOf(name string, read reader) ([]span, error) {
	switch name {
	case "ext4":
		return ext4Journal(read)
	case "xfs":
		return xfsLog(read)
	}
	return nil, nil
}

// ext4 is what the superblock says; all addresses are in blocks.
type ext4 struct {
	read       reader
	bs, blocks int64
}

func ext4Journal(read reader) ([]span, error) {
	const (
		is64Bit    = 0x80 // incompatible feature
		hasJournal = 0x4  // compatible feature
	)
	sb, err := read(1024, 1024)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(sb) < 1024 || le.Uint16(sb[56:]) != 0xef53 || le.Uint32(sb[24:]) > 6 {
		return nil, errLayout
	}
	if le.Uint32(sb[92:])&hasJournal == 0 || le.Uint32(sb[0xe0:]) == 0 {
		return nil, nil // none, or on another device
	}
	e := &ext4{read: read, bs: 1024 << le.Uint32(sb[24:]), blocks: int64(le.Uint32(sb[4:]))}
	if le.Uint32(sb[96:])&is64Bit != 0 {
		e.blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	// The superblock has a copy of the block map of the journal's inode
	// (s_jnl_blocks), which mke2fs and tune2fs keep.
	if e.blocks <= 0 || e.blocks > 1<<48 || sb[0xfd] != 1 {
		return nil, errLayout
	}
	nodes := 0
	return e.extents(nil, sb[0x10c:0x10c+60], 5, &nodes)
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
		if child >= e.blocks {
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

// xfsLog finds the log. XFS keeps all other metadata in memory and tries again
// while there is no space; only a log that cannot be written ends it.
func xfsLog(read reader) ([]span, error) {
	sb, err := read(0, 512)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if len(sb) < 512 || string(sb[:4]) != "XFSB" {
		return nil, errLayout
	}
	bs, start, agBlocks, log := int64(be.Uint32(sb[4:])), be.Uint64(sb[48:]), int64(be.Uint32(sb[84:])), int64(be.Uint32(sb[96:]))
	agShift := sb[124]
	if bs < 512 || bs > 64<<10 || agShift > 31 || start>>agShift > 1<<31 {
		return nil, errLayout
	}
	if start == 0 {
		return nil, nil // the log is on another device
	}
	block := int64(start>>agShift)*agBlocks + int64(start&(1<<agShift-1))
	if blocks := int64(be.Uint64(sb[8:])); block+log > blocks {
		return nil, fmt.Errorf("%w: its log ends beyond it", errLayout)
	}
	return []span{{block * bs, log * bs}}, nil
}
