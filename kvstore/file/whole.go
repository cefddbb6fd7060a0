package file

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Reads of the page cache are not atomic against writes on most file systems: on
// ext4 a read that copies a page while a write copies into it returns half of
// each. A block must never be torn, so changes count what they do and reads look
// whether a change of their block was under way, and then read that block again.
// Reads take no lock and change no word that a write looks at, unless they fail
// many times.
//
// Only this process counts: others may read what it writes to only when nobody
// writes (the volume's lease).

// turns is how many counters a layer has. Blocks that share one cost each other a
// read that is done twice.
const turns = 1 << 14

// turn counts the changes of the blocks that share it.
type turn struct {
	begun, ended atomic.Uint32
	held         atomic.Uint32 // reads that want changes to wait
}

// edge is how many blocks at each end of a discard can be torn: those of a folio,
// at most 2 MiB, that the discarded range covers in part. Inside the range whole
// folios leave the page cache.
const edge = 512

func (l *layer) turn(number uint64) *turn { return &l.turns[number%turns] }

// begin notes that count blocks are about to change, after those that read them in
// vain have read them.
func (l *layer) begin(first, count uint64) {
	l.yield(first, count)
	l.note(first, count)
}

// yield waits for those that read blocks in vain. Nobody calls it who has noted a
// change that is not over, so changes and reads cannot wait for each other.
func (l *layer) yield(first, count uint64) {
	for i := range count {
		for l.turn(first+i).held.Load() != 0 {
			runtime.Gosched()
		}
	}
}

func (l *layer) note(first, count uint64) {
	for i := range count {
		l.turn(first + i).begun.Add(1)
	}
}

// end notes that they have changed. Who began a change must end it.
func (l *layer) end(first, count uint64) {
	for i := range count {
		l.turn(first + i).ended.Add(1)
	}
}

// quiet returns how many changes a block has seen; ok if none is under way.
func (l *layer) quiet(number uint64) (n uint32, ok bool) {
	t := l.turn(number)
	ended := t.ended.Load() // first: begun is never less
	n = t.begun.Load()
	return n, n == ended
}

// look notes the state of a run's blocks before they are read.
func (c *channel) look(l *layer, run []*kvstore.Op) {
	c.seen = c.seen[:0]
	for _, op := range run {
		n, ok := l.quiet(op.Key.Number)
		if !ok {
			n-- // so that it differs afterwards
		}
		c.seen = append(c.seen, n)
	}
}

// lookAgain reads the blocks of a run anew that changed meanwhile.
func (c *channel) lookAgain(l *layer, run []*kvstore.Op) {
	for i, op := range run {
		if op.Err == nil && l.turn(op.Key.Number).begun.Load() != c.seen[i] {
			c.readWhole(l, op)
		}
	}
}

const (
	// After spins tries a read lets changes of the block wait; it sleeps between
	// looks from then on, as one that is under way may be waiting for the disk.
	spins     = 64
	readPause = 50 * time.Microsecond
)

// readWhole reads one block until no change came between.
func (c *channel) readWhole(l *layer, op *kvstore.Op) {
	t := l.turn(op.Key.Number)
	for try := 0; ; try++ {
		switch {
		case try == spins:
			t.held.Add(1)
			defer t.held.Add(^uint32(0))
		case try > spins:
			time.Sleep(readPause)
		case try > 0:
			runtime.Gosched()
		}
		n, ok := l.quiet(op.Key.Number)
		if !ok {
			continue
		}
		one := [1]*kvstore.Op{op}
		c.iov = c.iov[:1]
		c.iov[0] = unix.Iovec{Base: &op.Data[0]}
		c.iov[0].SetLen(kvstore.BlockSize)
		c.read(l, one[:])
		if op.Err != nil || t.begun.Load() == n {
			return
		}
	}
}

// punch makes a hole of count blocks.
func (l *layer) punch(first, count uint64) error {
	head, tail := min(count, edge), uint64(0)
	if count > edge {
		tail = min(count-edge, edge)
	}
	last := first + count - tail
	l.yield(first, head)
	l.yield(last, tail)
	l.note(first, head)
	l.note(last, tail)
	defer l.end(first, head)
	defer l.end(last, tail)
	return punch(l.fd, int64(first)*kvstore.BlockSize, int64(count)*kvstore.BlockSize)
}
