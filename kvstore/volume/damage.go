package volume

import "github.com/kvbfs/kvbfs/kvstore"

// Damage is what cannot be read of a volume, as Scrub and Repair find it.
type Damage struct {
	Lost      uint64 `json:"lost_blocks"` // by class, see LossClass
	Corrupt   uint64 `json:"corrupt_blocks"`
	Misplaced uint64 `json:"misplaced_blocks"`
	Foreign   uint64 `json:"foreign_blocks"`
	// Unknown blocks are absent and lie in the range of a page of the presence map
	// that is lost as well: they may never have been written.
	Unknown uint64 `json:"unknown_blocks"`
	// Pages of the presence map that the store does not have as they should be.
	Pages   uint64            `json:"lost_map_pages"`
	Extents []Extent          `json:"extents"`         // at most maxExtents, in order
	Omitted uint64            `json:"extents_omitted"` // how many more there are
	Servers map[string]uint64 `json:"by_server"`       // blocks of all classes
}

// Extent is a run of blocks with the same damage on the same server.
type Extent struct {
	First  uint64 `json:"first_block"`
	Count  uint64 `json:"blocks"`
	Class  string `json:"class"` // of LossClass, or "unknown"
	Server string `json:"server"`
}

// maxExtents bounds a report: some 100 KiB as JSON.
const maxExtents = 1000

// Blocks is how many blocks are damaged, in all classes.
func (d *Damage) Blocks() uint64 {
	return d.Lost + d.Corrupt + d.Misplaced + d.Foreign + d.Unknown
}

// init makes what would be null in JSON.
func (d *Damage) init() {
	if d.Extents == nil {
		d.Extents = []Extent{}
	}
	if d.Servers == nil {
		d.Servers = map[string]uint64{}
	}
}

// unknownClass is what Extent calls blocks that may never have been written.
const unknownClass = "unknown"

// add enters a block. Blocks come in rising order. It reports whether the class
// is one whose loss is certain.
func (d *Damage) add(lba uint64, class string, server string) {
	switch class {
	case Lost.String():
		d.Lost++
	case Corrupt.String():
		d.Corrupt++
	case Misplaced.String():
		d.Misplaced++
	case Foreign.String():
		d.Foreign++
	default:
		d.Unknown++
	}
	d.init()
	d.Servers[server]++
	if n := len(d.Extents); n > 0 {
		last := &d.Extents[n-1]
		if last.First+last.Count == lba && last.Class == class && last.Server == server && d.Omitted == 0 {
			last.Count++
			return
		}
		if n >= maxExtents {
			d.Omitted++
			return
		}
	}
	d.Extents = append(d.Extents, Extent{lba, 1, class, server})
}

// scanBatch is how many blocks a scan reads at once: their data is 1 MiB.
const scanBatch = 256

// scanReads is room for one batch of reads.
type scanReads struct {
	ops   []kvstore.Op
	batch []*kvstore.Op
	data  []byte
}

// read adds the read of a block to the batch.
func (s *scanReads) read(v *Volume, lba uint64) {
	if s.data == nil {
		s.ops = make([]kvstore.Op, 0, scanBatch)
		s.data = make([]byte, scanBatch*kvstore.BlockSize)
	}
	n := len(s.ops)
	s.ops = append(s.ops, kvstore.Op{Code: kvstore.Read, Key: v.blockKey(lba), Seed: v.seed,
		Data: s.data[n*kvstore.BlockSize : (n+1)*kvstore.BlockSize]})
	s.batch = append(s.batch, &s.ops[n])
}

func (s *scanReads) reset() { s.ops, s.batch = s.ops[:0], s.batch[:0] }
