package memcached

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// fill writes new blocks from n on until one is refused, and returns the number
// of the first that was.
func fill(t *testing.T, ch kvstore.Channel, n uint64) uint64 {
	t.Helper()
	for {
		var ops []*kvstore.Op
		for i := range uint64(64) {
			ops = append(ops, write(n+i, kvstore.Absent, block(n+i)))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			if errors.Is(op.Err, kvstore.ErrFull) {
				return n
			}
			want(t, op.Err, nil)
			n++
		}
	}
}

func TestFullServer(t *testing.T) {
	server := memcachedtest.Start(t, memcachedtest.MemoryMB(8))
	s := open(t, Config{}, server)
	want(t, s.Control().Add(bg(t), 0, "a:lease", make([]byte, 300)), nil)
	ch := channelOf(t, s)
	empty, err := s.Usage(bg(t))
	want(t, err, nil)
	end := fill(t, ch, 0)
	full, err := s.Usage(bg(t))
	want(t, err, nil)
	t.Logf("%d blocks; usage empty %+v, full %+v", end, empty, full)
	if full.Capacity-full.Used > 300*kvstore.BlockSize || full.Used < int64(end)*kvstore.BlockSize || full.Capacity != empty.Capacity {
		t.Errorf("usage of a full server: %+v, before %+v", full, empty)
	}
	if f, err := s.Inspect(bg(t)); err != nil || !finds(f, kvstore.Warn, "full") {
		t.Errorf("no warning about a full server: %+v, %v", f, err)
	}

	// Every block can be overwritten, in any way, in large batches, twice.
	for round := range uint64(2) {
		for n := uint64(0); n+128 <= end; n += 128 {
			var ops []*kvstore.Op
			for i := range uint64(128) {
				e := kvstore.Present
				if i%2 == 1 {
					e = kvstore.Any
				}
				ops = append(ops, write(n+i, e, block(n+i+round)))
			}
			ch.Do(bg(t), ops)
			for _, op := range ops {
				want(t, op.Err, nil)
			}
		}
	}
	wantBlock(t, ch, 5, block(6))
	r := read(7)
	r.Versioned = true
	want(t, do1(t, ch, r), nil)
	w := write(7, kvstore.Same, block(70))
	w.Version = r.Version
	want(t, do1(t, ch, w), nil)
	wantBlock(t, ch, 7, block(70))
	want(t, do1(t, ch, write(end, kvstore.Absent, block(1))), kvstore.ErrFull)
	want(t, do1(t, ch, write(end, kvstore.Any, block(1))), kvstore.ErrFull)
	want(t, do1(t, ch, write(end, kvstore.Present, block(1))), kvstore.ErrAbsent)

	// Control records change as well: a lease must be renewable.
	rec, err := s.Control().Get(bg(t), 0, "a:lease")
	want(t, err, nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, make([]byte, 320)), nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, make([]byte, 320)), kvstore.ErrConflict)

	// Vital new blocks take ballast for good, and leave some.
	vital := uint64(0)
	for ; ; vital++ {
		w := write(end+1000+vital, kvstore.Absent, block(vital))
		w.Vital = true
		if err := do1(t, ch, w); err != nil {
			want(t, err, kvstore.ErrFull)
			break
		}
	}
	if vital < ballastItems/2 || vital > ballastItems-ballastKept {
		t.Errorf("%d vital blocks fitted a full store with %d ballast items, %d kept", vital, ballastItems, ballastKept)
	}
	for n := range uint64(300) {
		want(t, do1(t, ch, write(n, kvstore.Present, block(n+1))), nil)
	}
	wantBlock(t, ch, end+1000, block(0))

	// New pages of the map take ballast for good, until there is none.
	pages := uint64(0)
	for ; pages < 2*ballastItems; pages++ {
		w := write(pages, kvstore.Absent, block(pages))
		w.Key.Kind = kvstore.KindMap
		if err := do1(t, ch, w); err != nil {
			want(t, err, kvstore.ErrFull)
			break
		}
	}
	if pages < ballastKept/2 || pages > ballastItems {
		t.Errorf("%d pages of the map fitted a full store with %d ballast items", pages, ballastItems)
	}
	want(t, do1(t, ch, write(9, kvstore.Present, block(90))), kvstore.ErrFull)
	wantBlock(t, ch, 9, block(10))

	// Discards bring the ballast back first; then there is room again.
	for n := uint64(100); n < 600; n += 50 {
		var ops []*kvstore.Op
		for i := range uint64(50) {
			ops = append(ops, discard(n+i))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	if m := s.servers[0].ballast.missing.Load(); m != 0 {
		t.Errorf("%d ballast items are still missing", m)
	}
	want(t, do1(t, ch, write(9, kvstore.Present, block(91))), nil)
	want(t, do1(t, ch, write(100, kvstore.Absent, block(1))), nil)
	after, err := s.Usage(bg(t))
	want(t, err, nil)
	if after.Used >= full.Used {
		t.Errorf("used %d after discards, %d when full", after.Used, full.Used)
	}
	fill(t, ch, 100000)
	want(t, do1(t, ch, write(9, kvstore.Present, block(92))), nil)
}

func finds(fs []kvstore.Finding, sev kvstore.Severity, part string) bool {
	for _, f := range fs {
		if f.Severity == sev && strings.Contains(f.What, part) {
			return true
		}
	}
	return false
}

func TestInspect(t *testing.T) {
	good := open(t, Config{}, memcachedtest.Start(t))
	f, err := good.Inspect(bg(t))
	want(t, err, nil)
	for _, x := range f {
		if x.Severity != kvstore.Info {
			t.Errorf("a good server: %+v", x)
		}
	}
	bad := open(t, Config{}, memcachedtest.Start(t, memcachedtest.Bare(), memcachedtest.Args("-c", "40")))
	f, err = bad.Inspect(bg(t))
	want(t, err, nil)
	for _, w := range []struct {
		sev  kvstore.Severity
		part string
	}{
		{kvstore.Refuse, "evictions"}, {kvstore.Refuse, "slab_automove"}, {kvstore.Warn, "connections"},
		{kvstore.Warn, "slab chunks"}, {kvstore.Warn, "flush_all"}, {kvstore.Info, "memcached 1"},
	} {
		if !finds(f, w.sev, w.part) {
			t.Errorf("not found: %v %q in %v", w.sev, w.part, fmt.Sprintf("%+v", f))
		}
	}
	ext := open(t, Config{}, memcachedtest.Start(t, memcachedtest.Args("-o", "ext_path="+t.TempDir()+"/ext:64m")))
	f, err = ext.Inspect(bg(t))
	want(t, err, nil)
	if !finds(f, kvstore.Refuse, "extstore") {
		t.Errorf("extstore not found: %+v", f)
	}
}
