package cache

import (
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// streams finds out which readers read in sequence. A mark says where a reader
// may go on; a run of neighbours that begins at a mark moves it. A reader has a
// line of marks, as one open file may carry several streams: what is read through
// a loop device all comes from one reader. Looking at marks is all that a random
// read costs; most of them leave none.
type streams struct {
	marks [lines][lineMarks]atomic.Uint64 // 16 bits of reader and layer, 48 bits of block number
	state [lines * lineMarks]stream
}

const (
	lines     = 64
	lineMarks = 8 // one cache line
	markBits  = 48
	markMask  = 1<<markBits - 1

	// opens is how many runs must follow on each other before anything is read
	// ahead: two happen by chance.
	opens = 2
	// patient is how many runs of a channel may lead nowhere before it leaves a mark
	// for one in sparse only: random readers should not write where others look.
	patient = 64
	sparse  = 8
)

// stream is what is known of the reader behind a mark.
type stream struct {
	// generation grows when the mark is given to another stream: what was to be
	// read for the old one is not read any more.
	generation atomic.Uint32
	open       atomic.Bool // something is read ahead
	recent     atomic.Bool // it moved since the mark was last looked at for reuse

	mu     sync.Mutex // guards all below; only tried by who moves the mark
	steps  int        // runs that followed on each other
	window uint64     // blocks
	ahead  uint64     // the block behind the last one that was asked for ahead
}

// random is what a channel remembers of runs that led nowhere.
type random struct{ count uint32 }

// run is neighbours that one reader asked for in one batch.
type run struct {
	id     kvstore.LayerID
	layer  *layer
	reader uint32
	seed   uint32
	first  uint64
	count  uint64
}

// follow makes a read part of a run.
func (c *channel) follow(op *kvstore.Op) {
	r := &c.run
	if r.count > 0 {
		if op.Reader == r.reader && op.Key.Layer == r.id && op.Key.Number == r.first+r.count {
			r.count++
			return
		}
		c.endRun()
	}
	*r = run{id: op.Key.Layer, layer: c.layer, reader: op.Reader, seed: op.Seed, first: op.Key.Number, count: 1}
}

// endRun looks where the run goes on, and has read ahead what comes after it.
func (c *channel) endRun() {
	a, r := c.store.ahead, c.run
	c.run = run{}
	h := (uint64(r.reader)<<32 ^ uint64(r.id)) * 0x9e3779b97f4a7c15
	line, tag := h>>32%lines, h>>markBits<<markBits
	marks := &a.streams.marks[line]
	for i := range marks {
		m := marks[i].Load()
		if m&^markMask != tag || m == 0 {
			continue
		}
		st := &a.streams.state[line*lineMarks+uint64(i)]
		at := m & markMask
		// A stream that is open may leave out holes, and its requests may come over
		// several workers, a little out of order.
		near := st.open.Load() && (r.first-at < a.limit || at-r.first < a.limit)
		if at != r.first && !near {
			continue
		}
		c.random.count = 0
		if end := r.first + r.count; near && end <= at || !marks[i].CompareAndSwap(m, tag|end&markMask) {
			return // behind, or somebody else moved it
		}
		a.advance(st, r)
		return
	}
	if c.random.count++; c.random.count > patient && c.random.count%sparse != 0 {
		return
	}
	a.streams.begin(line, c.random.count, tag|(r.first+r.count)&markMask)
}

// begin gives a mark of a line to what may become a stream.
func (s *streams) begin(line uint64, turn uint32, mark uint64) {
	i := turn / sparse % lineMarks
	if turn <= patient {
		i = turn % lineMarks
	}
	for range lineMarks {
		if !s.state[line*lineMarks+uint64(i)].recent.Swap(false) {
			break
		}
		i = (i + 1) % lineMarks
	}
	st := &s.state[line*lineMarks+uint64(i)]
	if !st.mu.TryLock() {
		return
	}
	defer st.mu.Unlock()
	if st.steps > 0 || st.open.Load() {
		st.stop()
	}
	s.marks[line][i].Store(mark)
}

// stop cancels what is to be read for a stream. mu is held.
func (st *stream) stop() {
	st.generation.Add(1)
	st.open.Store(false)
	st.steps, st.window, st.ahead = 0, 0, 0
}

// advance has read ahead for a stream that went on to the end of r. The window
// begins with a chunk and doubles as long as the reader follows.
func (a *ahead) advance(st *stream, r run) {
	if !st.mu.TryLock() {
		return
	}
	defer st.mu.Unlock()
	st.recent.Store(true)
	if st.steps++; st.steps < opens {
		return
	}
	st.open.Store(true)
	pos := r.first + r.count
	if st.window == 0 {
		st.window = min(2*chunk, a.limit)
	}
	if st.ahead < pos || st.ahead > pos+2*a.limit {
		st.ahead = pos
	}
	if st.ahead-pos > st.window/2 {
		return
	}
	end := (pos + st.window + chunk - 1) / chunk * chunk
	for st.ahead < end {
		n := min(chunk-st.ahead%chunk, end-st.ahead)
		if !a.push(st, r, st.ahead, n) {
			return
		}
		st.ahead += n
	}
	st.window = min(2*st.window, a.limit)
}
