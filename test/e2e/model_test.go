//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestModel does random operations of any alignment on an image and on a []byte,
// mounts again now and then, and compares all the way.
func TestModel(t *testing.T) {
	rig.RequireFUSE(t)
	everyStore(t, 3*time.Minute, 256, func(t *testing.T, r *rig.Rig, store string) { modelRun(t, r, store, "model", 6) })
}

func modelRun(t *testing.T, r *rig.Rig, store, volume string, rounds int) {
	const size = 24 << 20
	rnd := rig.Rand(t)
	r.Create(store, volume, fmt.Sprint(size))
	m := &model{t: t, r: r, store: store, volume: volume, mount: r.Mount(store), want: make([]byte, size), rnd: rnd}
	m.open()
	for range rounds {
		for range 400 {
			m.step()
		}
		m.compareAll()
		m.reopen()
		m.compareAll()
	}
	m.grow(size + 8<<20)
	for range 300 {
		m.step()
	}
	m.compareAll()
	m.f.Close()
	m.mount.Umount()
}

type model struct {
	t      *testing.T
	r      *rig.Rig
	store  string
	volume string
	mount  *rig.Mount
	f      *rig.File
	want   []byte
	rnd    *rand.Rand
	n      int      // steps so far
	last   []string // the latest steps, for messages
}

func (m *model) open() {
	m.t.Helper()
	f, err := rig.OpenPlain(m.mount.Image(m.volume))
	if err != nil {
		m.t.Fatal(err)
	}
	m.f = f
}

func (m *model) reopen() {
	m.t.Helper()
	m.f.Close()
	m.mount.Umount()
	m.mount.Mount(m.store)
	m.open()
}

// extent chooses a range: small pieces, a few large ones, block-aligned ones and
// some that touch the end.
func (m *model) extent() (off, n int64) {
	size := int64(len(m.want))
	switch m.rnd.IntN(4) {
	case 0:
		n = 1 + m.rnd.Int64N(9000)
	case 1:
		n = 1 + m.rnd.Int64N(1<<20)
	case 2:
		n = rig.BlockSize * (1 + m.rnd.Int64N(64))
	default:
		n = 1 + m.rnd.Int64N(512)
	}
	off = m.rnd.Int64N(size)
	if m.rnd.IntN(2) == 0 {
		off &^= rig.BlockSize - 1
	}
	if m.rnd.IntN(20) == 0 {
		off = size - n
	}
	return off, min(n, size-off)
}

func (m *model) step() {
	m.t.Helper()
	m.n++
	off, n := m.extent()
	note := func(what string) {
		m.last = append(m.last, fmt.Sprintf("%d: %s %d+%d", m.n, what, off, n))
		m.last = m.last[max(0, len(m.last)-12):]
	}
	var err error
	switch k := m.rnd.IntN(10); {
	case k < 4:
		note("write")
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(m.rnd.Uint32())
		}
		if m.rnd.IntN(8) == 0 {
			clear(b) // zeros are stored as nothing: a path of their own
		}
		err = m.f.WriteAt(b, off)
		copy(m.want[off:], b)
	case k < 5:
		note("punch")
		err = m.f.Punch(off, n)
		clear(m.want[off : off+n])
	case k < 6:
		note("zero")
		err = m.f.Zero(off, n)
		clear(m.want[off : off+n])
	case k < 7 && m.rnd.IntN(5) == 0:
		note("fsync")
		err = m.f.Sync()
	default:
		note("read")
		m.compare(off, n)
	}
	if err != nil {
		m.t.Fatalf("%v\nlast steps: %v", err, m.last)
	}
}

func (m *model) compare(off, n int64) {
	m.t.Helper()
	got := make([]byte, n)
	if err := m.f.ReadAt(got, off); err != nil {
		m.t.Fatalf("read %d+%d: %v\nlast steps: %v", off, n, err, m.last)
	}
	if want := m.want[off : off+n]; !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		m.t.Fatalf("byte %d is %#x, want %#x\nlast steps: %v", off+int64(i), got[i], want[i], m.last)
	}
}

func (m *model) compareAll() {
	m.t.Helper()
	for off := int64(0); off < int64(len(m.want)); off += 1 << 20 {
		m.compare(off, min(1<<20, int64(len(m.want))-off))
	}
}

// grow makes the volume larger, as truncate does.
func (m *model) grow(size int64) {
	m.t.Helper()
	if err := os.Truncate(m.mount.Image(m.volume), size); err != nil {
		m.t.Fatal(err)
	}
	m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
	if fi, err := os.Stat(m.mount.Image(m.volume)); err != nil || fi.Size() != size {
		m.t.Fatalf("after growing to %d: %v, %v", size, fi.Size(), err)
	}
}
