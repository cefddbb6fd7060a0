package volume

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// modelTime bounds one run of the model.
const modelTime = time.Second

// TestModel does random things to a volume and to a []byte, and compares.
func TestModel(t *testing.T) {
	for _, kind := range stores {
		t.Run(kind, func(t *testing.T) {
			seed := storetest.Seed(t.Logf)
			steps := 2000
			if testing.Short() {
				steps = 60
			}
			// The second one lies across the border of two pages of the map.
			runModel(t, newRig(t, kind), rand.New(rand.NewPCG(seed, 0)), steps, 0)
			runModel(t, newRig(t, kind), rand.New(rand.NewPCG(seed, 1)), steps, (bitsPerPage-200)*kvstore.BlockSize)
		})
	}
}

// model is the volume and what it must read as.
type model struct {
	*rig
	t    *testing.T
	rnd  *rand.Rand
	v    *Volume
	base int64  // where the model begins in the volume
	want []byte // what was acknowledged
	// stable is what was flushed last; torn says which blocks changed since.
	stable []byte
	torn   map[int]bool
	// provisions: some blocks of zeros are stored.
	provisions bool
}

func runModel(t *testing.T, r *rig, rnd *rand.Rand, steps int, base int64) {
	const blocks = 300
	r.create("v", base+blocks*kvstore.BlockSize)
	m := &model{rig: r, t: t, rnd: rnd, base: base, v: r.open("v"), want: make([]byte, blocks*kvstore.BlockSize)}
	m.settled()
	// The race detector on a busy machine is slow: the rest is for other days.
	for i, began := 0, time.Now(); i < steps && time.Since(began) < modelTime; i++ {
		what := m.step()
		if t.Failed() {
			t.Fatalf("step %d: %s", i, what)
		}
	}
	m.check("the end")
}

func (m *model) settled() {
	m.stable = bytes.Clone(m.want)
	m.torn = map[int]bool{}
}

// span chooses a range, aligned to blocks or not.
func (m *model) span() (off, n int64) {
	size := int64(len(m.want))
	unit := int64(1)
	switch m.rnd.IntN(3) {
	case 0:
		unit = kvstore.BlockSize
	case 1:
		unit = 512
	}
	off = m.rnd.Int64N(size/unit) * unit
	n = (1 + m.rnd.Int64N(max(1, 40*kvstore.BlockSize/unit>>m.rnd.IntN(7)))) * unit
	return off, min(n, size-off)
}

func (m *model) step() string {
	switch k := m.rnd.IntN(100); {
	case k < 80:
		m.requests()
		return "requests"
	case k < 84:
		m.flush(m.v)
		m.settled()
		return "flush"
	case k < 88:
		m.reap(m.v)
		return "reap"
	case k < 90:
		m.grow()
		return "grow"
	case k < 92:
		must(m.t, m.v.Close(ctx))
		m.v = m.open("v")
		m.settled()
		m.check("reopening")
		return "reopen"
	case k < 94:
		m.crash()
		m.v = m.open("v")
		m.check("crash of the daemon")
		return "crash"
	case k < 95:
		m.crashMachine()
		return "crash of the machine"
	case k < 96:
		m.check("check")
		return "check"
	default:
		m.seekAll()
		return "seek"
	}
}

// requests runs one batch of requests whose writes do not overlap.
func (m *model) requests() {
	var reqs []*Request
	used := make([]bool, len(m.want)/kvstore.BlockSize)
	type readBack struct {
		r    *Request
		want []byte
	}
	var reads []readBack
	for range 1 + m.rnd.IntN(12) {
		off, n := m.span()
		free := true
		for b := off / kvstore.BlockSize; b <= (off+n-1)/kvstore.BlockSize; b++ {
			free = free && !used[b]
		}
		if !free {
			continue
		}
		for b := off / kvstore.BlockSize; b <= (off+n-1)/kvstore.BlockSize; b++ {
			used[b] = true
		}
		r := &Request{Vol: m.v, Off: m.base + off, N: n}
		switch k := m.rnd.IntN(10); {
		case k < 4:
			r.Kind, r.Data = Read, bytes.Repeat([]byte{0xee}, int(n))
			reads = append(reads, readBack{r, bytes.Clone(m.want[off : off+n])})
		case k < 7:
			r.Kind, r.Data = Write, make([]byte, n)
			for i := range r.Data {
				r.Data[i] = byte(m.rnd.Uint32())
			}
		case k < 8: // zeros, at least in part
			r.Kind, r.Data = Write, make([]byte, n)
			r.Data[m.rnd.Int64N(n)] = byte(m.rnd.IntN(2))
		default:
			r.Kind = Discard + RequestKind(m.rnd.IntN(2))
			if m.provisions && k == 8 {
				r.Kind = Provision
			}
		}
		if r.Kind != Read && r.Kind != Provision {
			copy(m.want[off:off+n], make([]byte, n))
			copy(m.want[off:off+n], r.Data)
			for b := off / kvstore.BlockSize; b <= (off+n-1)/kvstore.BlockSize; b++ {
				m.torn[int(b)] = true
			}
		}
		reqs = append(reqs, r)
	}
	m.w.Do(ctx, reqs)
	for _, r := range reqs {
		if r.Err != nil {
			m.t.Errorf("request %d at %d+%d: %v", r.Kind, r.Off, max(r.N, int64(len(r.Data))), r.Err)
		}
	}
	for _, rb := range reads {
		if !bytes.Equal(rb.r.Data, rb.want) {
			m.t.Errorf("read at %d: %s", rb.r.Off, firstDiff(rb.r.Data, rb.want))
		}
	}
}

func (m *model) grow() {
	if len(m.want) > 1200*kvstore.BlockSize {
		return
	}
	n := m.rnd.IntN(64) * kvstore.BlockSize
	m.want = append(m.want, make([]byte, n)...)
	m.stable = append(m.stable, make([]byte, n)...)
	must(m.t, m.set.Resize(ctx, "v", m.base+int64(len(m.want)), false))
}

// crashMachine loses the local state: each block that changed since the last
// flush is old, new or zero, the others are as they were.
func (m *model) crashMachine() {
	m.crash()
	m.loseState()
	m.v = m.open("v")
	got := m.read(m.v, m.base, int64(len(m.want)))
	for b := range len(got) / kvstore.BlockSize {
		at := b * kvstore.BlockSize
		g := got[at : at+kvstore.BlockSize]
		if bytes.Equal(g, m.stable[at:at+kvstore.BlockSize]) && !m.torn[b] {
			continue
		}
		// Between two flushes a block may have had many contents; zeros, and what
		// it had first and last, are the ones that the model knows.
		if !m.torn[b] {
			m.t.Errorf("block %d was flushed and is different after a crash of the machine", b)
		}
	}
	copy(m.want, got)
	m.settled()
}

func (m *model) check(when string) {
	if got := m.read(m.v, m.base, int64(len(m.want))); !bytes.Equal(got, m.want) {
		m.t.Errorf("%s: %s", when, firstDiff(got, m.want))
	}
	stored := int64(0)
	for at := 0; at < len(m.want); at += kvstore.BlockSize {
		if !zero(m.want[at : at+kvstore.BlockSize]) {
			stored += kvstore.BlockSize
		}
	}
	if got := m.v.Allocated(); got < stored || (got > stored && !m.provisions) {
		m.t.Errorf("%s: allocated %d, want %d", when, got, stored)
	}
}

// seekAll walks over the extents: data where the model has some, and nowhere else.
func (m *model) seekAll() {
	size := int64(len(m.want))
	if m.provisions {
		return
	}
	for off := int64(0); off < size; {
		data, err := m.v.SeekData(ctx, m.base+off)
		if data -= m.base; err != nil {
			data = size
		}
		if !zero(m.want[off:data]) {
			m.t.Errorf("SeekData(%d) = %d passes over data", off, data)
		}
		if off = data; off == size {
			break
		}
		hole, err := m.v.SeekHole(ctx, m.base+off)
		must(m.t, err)
		hole -= m.base
		for at := off / kvstore.BlockSize * kvstore.BlockSize; at < hole; at += kvstore.BlockSize {
			if zero(m.want[at : at+kvstore.BlockSize]) {
				m.t.Errorf("SeekHole(%d) = %d passes over the hole at %d", off, hole, at)
				return
			}
		}
		off = hole
	}
}
