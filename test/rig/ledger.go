package rig

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// Ledger is the version model of a disk under crashes: for each block, the
// version that was last acknowledged and the one that was last sent. After a
// crash the block must be one of the two, whole.
type Ledger struct {
	Blocks int64 // the disk's size

	mu      sync.Mutex
	issued  map[int64]uint64 // guarded by mu
	acked   map[int64]uint64 // guarded by mu
	writes  int64            // guarded by mu
	version uint64           // guarded by mu
}

// NewLedger models a disk of n blocks that was never written.
func NewLedger(n int64) *Ledger {
	return &Ledger{Blocks: n, issued: map[int64]uint64{}, acked: map[int64]uint64{}}
}

// Acknowledged is the number of acknowledged writes so far.
func (l *Ledger) Acknowledged() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

// Storm writes with n writers, each to blocks of its own, until a write fails,
// and returns the number of writers whose error was that of a dead daemon.
func (l *Ledger) Storm(f *File, n int, seed uint64) {
	var wg sync.WaitGroup
	for w := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			l.writer(f, int64(w), int64(n), seed)
		}()
	}
	wg.Wait()
}

func (l *Ledger) writer(f *File, w, n int64, seed uint64) {
	buf := Aligned(BlockSize)
	r := rand.New(rand.NewPCG(seed, uint64(w)))
	for {
		block := r.Int64N(l.Blocks/n)*n + w
		l.mu.Lock()
		l.version++
		v := l.version
		l.issued[block] = v
		l.mu.Unlock()
		Stamp(buf, block, v)
		if f.WriteAt(buf, block*BlockSize) != nil {
			return
		}
		l.mu.Lock()
		l.acked[block] = v
		l.writes++
		l.mu.Unlock()
	}
}

// Verify reads every block that was ever sent. What it finds becomes the new
// acknowledged state: a block that was in flight may be either, but not both in
// turn.
func (l *Ledger) Verify(t testing.TB, f *File) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	bad := 0
	got, want := Aligned(BlockSize), make([]byte, BlockSize)
	for block, issued := range l.issued {
		if err := f.ReadAt(got, block*BlockSize); err != nil {
			t.Fatalf("block %d: %v", block, err)
		}
		fits := false
		for _, v := range []uint64{l.acked[block], issued} {
			if Stamp(want, block, v); bytes.Equal(got, want) {
				l.acked[block], l.issued[block], fits = v, v, true
				break
			}
		}
		if !fits {
			if bad++; bad <= 10 {
				t.Errorf("block %d: %s, want version %d (acknowledged) or %d (in flight)", block, describe(got), l.acked[block], issued)
			}
		}
	}
	if bad > 0 {
		t.Fatalf("%d of %d blocks are wrong", bad, len(l.issued))
	}
}

// Stamp fills a block with its number and version; version 0 is zeros.
func Stamp(b []byte, block int64, version uint64) {
	if version == 0 {
		clear(b)
		return
	}
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(block)<<16|uint64(i))
		binary.LittleEndian.PutUint64(b[i+8:], version)
	}
}

func describe(b []byte) string {
	v := binary.LittleEndian.Uint64(b[8:])
	want := make([]byte, len(b))
	block := int64(binary.LittleEndian.Uint64(b) >> 16)
	if Stamp(want, block, v); bytes.Equal(b, want) {
		return fmt.Sprintf("block %d version %d", block, v)
	}
	if bytes.Equal(b, make([]byte, len(b))) {
		return "zeros"
	}
	return fmt.Sprintf("torn or foreign (%x...)", b[:24])
}
