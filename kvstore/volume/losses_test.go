package volume

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// heard collects what a Set logs.
type heard struct {
	mu    sync.Mutex
	lines []string
}

func (h *heard) log(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf(format, args...))
}

// about returns the lines that contain all words.
func (h *heard) about(words ...string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
line:
	for _, l := range h.lines {
		for _, w := range words {
			if !strings.Contains(l, w) {
				continue line
			}
		}
		n++
	}
	return n
}

// TestLossClasses: each way in which a block can be spoiled has its counter and
// one line in the log, however often it is read; reads and partial writes fail;
// a whole block written over it, or zeros, heal it and are counted.
func TestLossClasses(t *testing.T) {
	for _, c := range []struct {
		class LossClass
		word  string // of the line in the log, beside block and server
		spoil func(st *mem.Store, v, other *Volume) bool
		count func(c Counters) uint64
	}{
		{Lost, "is lost", func(st *mem.Store, v, _ *Volume) bool { return st.Drop(v.blockKey(3)) },
			func(c Counters) uint64 { return c.LostBlocks }},
		{Corrupt, "is corrupt", func(st *mem.Store, v, _ *Volume) bool { return st.Corrupt(v.blockKey(3)) },
			func(c Counters) uint64 { return c.CorruptBlocks }},
		{Misplaced, "is misplaced: server mem0 has block 5 in its place",
			func(st *mem.Store, v, _ *Volume) bool { return st.Misplace(v.blockKey(5), v.blockKey(3)) },
			func(c Counters) uint64 { return c.MisplacedBlocks }},
		{Foreign, "is foreign: server mem0 has block 4 of volume other in its place",
			func(st *mem.Store, v, o *Volume) bool { return st.Misplace(o.blockKey(4), v.blockKey(3)) },
			func(c Counters) uint64 { return c.ForeignBlocks }},
	} {
		t.Run(c.class.String(), func(t *testing.T) {
			var h heard
			r := newRig(t, "mem")
			r.set.opt.Log = h.log
			r.create("v", 64*4096)
			r.create("other", 64*4096)
			v, other := r.open("v"), r.open("other")
			r.write(v, 0, pattern(8*4096, 1))
			r.write(other, 0, pattern(8*4096, 2))
			spoil := func() {
				t.Helper()
				if !c.spoil(r.mem(), v, other) {
					t.Fatal("nothing was spoiled")
				}
			}
			spoil()
			for range 3 {
				err := r.do(Request{Kind: Read, Vol: v, Off: 2 * 4096, Data: make([]byte, 3*4096)})
				if !errors.Is(err, ErrLost) && !errors.Is(err, kvstore.ErrCorrupt) {
					t.Fatal(err)
				}
			}
			if err := r.do(Request{Kind: Write, Vol: v, Off: 3*4096 + 7, Data: []byte("x")}); err == nil {
				t.Fatal("a partial write succeeded")
			}
			if n := c.count(v.Counters()); n != 4 {
				t.Errorf("counted %d times, want 4", n)
			}
			if n := h.about("block 3 ", c.word, "mem0", "volume v"); n != 1 {
				t.Errorf("%d lines in the log say %q:\n%s", n, c.word, strings.Join(h.lines, "\n"))
			}
			if rec, err := r.pool.Volume(ctx, "v"); err != nil || !rec.Damaged {
				t.Errorf("the record is not marked: %v", err)
			}
			r.write(v, 2*4096, pattern(3*4096, 9))
			if got := r.read(v, 2*4096, 3*4096); !bytes.Equal(got, pattern(3*4096, 9)) {
				t.Error("not healed")
			}
			spoil()
			if err := r.do(Request{Kind: Read, Vol: v, Off: 3 * 4096, Data: make([]byte, 4096)}); err == nil {
				t.Fatal("the second loss was not seen")
			}
			r.write(v, 3*4096, make([]byte, 4096))
			if !zero(r.read(v, 3*4096, 4096)) {
				t.Error("not zeros")
			}
			if n := v.Counters().HealedBlocks; n != 2 {
				t.Errorf("%d blocks healed, want 2", n)
			}
			if n := h.about("block 3 ", c.word); n != 2 {
				t.Errorf("%d lines in the log for two losses", n)
			}
		})
	}
}

// TestHealedWhenFull: a lost block that a full store does not take again is not
// counted as healed.
func TestHealedWhenFull(t *testing.T) {
	const room = 40
	r := newRigOn(t, "", mem.New(mem.Config{CapacityBlocks: room, Reserve: true}))
	r.create("v", 256*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.mem().Drop(v.blockKey(0))
	var err error
	for i := int64(1); err == nil; i++ {
		err = r.do(Request{Kind: Write, Vol: v, Off: i * 4096, Data: pattern(4096, 1)})
	}
	if err := r.do(Request{Kind: Write, Vol: v, Data: pattern(4096, 1)}); !errors.Is(err, kvstore.ErrFull) {
		t.Fatal(err)
	}
	if n := v.Counters().HealedBlocks; n != 0 {
		t.Errorf("%d blocks healed", n)
	}
	if err := r.do(Request{Kind: Read, Vol: v, Data: make([]byte, 4096)}); !errors.Is(err, ErrLost) {
		t.Errorf("the lost block after a write that failed: %v", err)
	}
}
