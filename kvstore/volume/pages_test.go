package volume

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

func TestMapHeight(t *testing.T) {
	const page = int64(bitsPerPage) * kvstore.BlockSize
	for _, c := range []struct {
		size int64
		want uint8
	}{
		{4096, 1}, {page, 1}, {page + 4096, 2}, {1 << 40, 2},
		{page * bitsPerPage, 2}, {page*bitsPerPage + 4096, 3}, {pool.MaxSize, 3},
	} {
		if got := MapHeight(c.size); got != c.want {
			t.Errorf("MapHeight(%d) = %d, want %d", c.size, got, c.want)
		}
		if n := bitsAt(blocksOf(c.size), int(c.want)); n != 1 {
			t.Errorf("%d pages at the top of %d bytes", n, c.size)
		}
	}
	if stateSize%4096 != 0 || pendingAt%4096 != 0 || maxPages0 != bitsAt(maxBlocks, 1) || maxPages1 != bitsAt(maxBlocks, 2) {
		t.Error("layout of the local state")
	}
}

// TestPageVector is the page of docs/format.md.
func TestPageVector(t *testing.T) {
	words := make([]uint64, wordsPerPage)
	words[0] = 1 | 1<<9
	words[wordsPerPage-1] = 1 << 63
	page := make([]byte, kvstore.BlockSize)
	putPage(page, 0x01020304, pageID{1, 0x0a0b0c}, pageVersion{5, 6}, words)
	want := "4b564d31" + "01020304" + "02" + "000000000a0b0c" + "0000000000000005" + "0000000000000006" + "0102"
	if got := hex.EncodeToString(page[:34]); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if page[4095] != 0x80 || !zero(page[40:4088]) {
		t.Error("bits are elsewhere")
	}
	ver, err := parsePage(page, 0x01020304, pageID{1, 0x0a0b0c})
	if err != nil || ver != (pageVersion{5, 6}) {
		t.Error(ver, err)
	}
	if _, err := parsePage(page, 0x01020304, pageID{0, 0x0a0b0c}); err == nil {
		t.Error("a page passes for one of another level")
	}
}

func TestPresence(t *testing.T) {
	m := newPresence(3 * bitsPerPage)
	m.pending = make([]uint64, len(m.bits[0]))
	m.dirty, m.queued = make([]uint64, 1), make([]uint64, 1)
	setBit(m.bits[1], 0)
	setBit(m.bits[1], 2)
	for _, lba := range []uint64{0, 63, 64, bitsPerPage - 1, 2 * bitsPerPage} {
		m.set(lba)
	}
	for _, c := range []struct {
		from uint64
		data bool
		want uint64
	}{
		{0, true, 0}, {0, false, 1}, {1, true, 63}, {63, false, 65}, {65, true, bitsPerPage - 1},
		{bitsPerPage, true, 2 * bitsPerPage}, {bitsPerPage, false, bitsPerPage},
		{2*bitsPerPage + 1, true, 3 * bitsPerPage}, {2 * bitsPerPage, false, 2*bitsPerPage + 1},
	} {
		if got := m.next(c.from, 3*bitsPerPage, c.data); got != c.want {
			t.Errorf("next(%d, %v) = %d, want %d", c.from, c.data, got, c.want)
		}
	}
	if gone := m.clear(63, 2*bitsPerPage); gone != 4 || m.count.Load() != 1 || m.pend.Load() != 4 {
		t.Error(gone, m.count.Load(), m.pend.Load())
	}
	m.set(64)
	if m.pend.Load() != 3 || m.count.Load() != 2 {
		t.Error(m.pend.Load(), m.count.Load())
	}
}

func TestZero(t *testing.T) {
	b := make([]byte, 4096)
	for _, n := range []int{0, 1, 63, 64, 100, 4096} {
		if !zero(b[:n]) {
			t.Error(n)
		}
		for i := range n {
			b[i] = 1
			if zero(b[:n]) {
				t.Fatalf("byte %d of %d", i, n)
			}
			b[i] = 0
		}
	}
	if !bytes.Equal(b, make([]byte, 4096)) {
		t.Fatal()
	}
}

// TestStateLayout holds the offsets that docs/format.md gives.
func TestStateLayout(t *testing.T) {
	got := []int64{presentAt, level1At, level2At, level3At, dirtyAt, queuedAt, pendingAt, sequencesAt, stateSize}
	want := []int64{4096, 2147491840, 2147561472, 2147565568, 2147569664, 2147639296, 2147708928, 4295196672, 4299427840}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("array %d is at %d, want %d", i, got[i], want[i])
		}
	}
}
