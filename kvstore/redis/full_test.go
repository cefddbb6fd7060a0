package redis

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
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
	server := redistest.Start(t, redistest.MemoryMB(12))
	s := open(t, Config{}, server)
	want(t, s.Control().Add(bg(t), 0, "a:lease", make([]byte, 300)), nil)
	ch := channelOf(t, s)
	end := fill(t, ch, 0)
	full, err := s.Usage(bg(t))
	want(t, err, nil)
	t.Logf("%d blocks; usage %+v", end, full)
	if full.Capacity-full.Used > 64*kvstore.BlockSize || full.Used < int64(end)*kvstore.BlockSize {
		t.Errorf("usage of a full server: %+v", full)
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
	// What is not there cannot be overwritten, full or not.
	want(t, do1(t, ch, write(end, kvstore.Present, block(1))), kvstore.ErrAbsent)

	// Control records change as well: a lease must be renewable.
	rec, err := s.Control().Get(bg(t), 0, "a:lease")
	want(t, err, nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, make([]byte, 320)), nil)
	want(t, s.Control().Swap(bg(t), 0, "a:lease", rec, make([]byte, 320)), kvstore.ErrConflict)
	want(t, s.Control().Add(bg(t), 0, "a:new", nil), kvstore.ErrFull)
	want(t, ch.Flush(bg(t), testLayer), nil)

	// Vital new blocks and pages of the map are taken; the former not without end.
	vital := uint64(0)
	for ; ; vital++ {
		w := write(end+1000+vital, kvstore.Absent, block(vital))
		w.Vital = true
		if err := do1(t, ch, w); err != nil {
			want(t, err, kvstore.ErrFull)
			break
		}
	}
	if vital != maxSpare {
		t.Errorf("%d vital blocks fitted a full store, want %d", vital, maxSpare)
	}
	wantBlock(t, ch, end+1000, block(0))
	for n := range uint64(8) {
		w := write(n, kvstore.Absent, block(n))
		w.Key.Kind = kvstore.KindMap
		want(t, do1(t, ch, w), nil)
	}

	// Discards make room, and what was spared is forgotten.
	for n := uint64(0); n < maxSpare+200; n += 50 {
		var ops []*kvstore.Op
		for i := range uint64(50) {
			ops = append(ops, discard(end+1000+n+i))
		}
		ch.Do(bg(t), ops)
		for _, op := range ops {
			want(t, op.Err, nil)
		}
	}
	for n := range uint64(100) {
		want(t, do1(t, ch, discard(n+100)), nil)
	}
	want(t, do1(t, ch, write(100, kvstore.Absent, block(1))), nil)
	if n := (*s.nodes.Load())[0].spare.Load(); n != 0 {
		t.Errorf("%d vital blocks are still counted", n)
	}
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
	s := open(t, Config{}, redistest.Start(t, redistest.Log("everysec")))
	f, err := s.Inspect(bg(t))
	want(t, err, nil)
	for _, x := range f {
		if x.Severity != kvstore.Info {
			t.Errorf("a good server: %+v", x)
		}
	}
	if !finds(f, kvstore.Info, "append-only file, fsync everysec, 0 replicas") {
		t.Errorf("durability: %+v", f)
	}
	bad := open(t, Config{}, redistest.Start(t, redistest.Careless(), redistest.Args("--maxclients", "40", "--maxmemory", "0")))
	f, err = bad.Inspect(bg(t))
	want(t, err, nil)
	for _, w := range []struct {
		sev  kvstore.Severity
		part string
	}{
		{kvstore.Refuse, "maxmemory-policy is allkeys-lru"}, {kvstore.Warn, "no append-only file"}, {kvstore.Warn, "clients"},
		{kvstore.Warn, "maxmemory is not set"}, {kvstore.Info, "redis "},
	} {
		if !finds(f, w.sev, w.part) {
			t.Errorf("not found: %v %q in %v", w.sev, w.part, fmt.Sprintf("%+v", f))
		}
	}
}

// TestDurability: one word says what a flush survives; the least durable server
// counts.
func TestDurability(t *testing.T) {
	none, log, always := redistest.Start(t), redistest.Start(t, redistest.Log("everysec")), redistest.Start(t, redistest.Log("always"))
	for _, c := range []struct {
		servers []*redistest.Server
		want    kvstore.Durability
	}{
		{[]*redistest.Server{none}, kvstore.Volatile},
		{[]*redistest.Server{log}, kvstore.Server},
		{[]*redistest.Server{always}, kvstore.Disk},
		{[]*redistest.Server{log, always}, kvstore.Server},
		{[]*redistest.Server{none, always}, kvstore.Volatile},
	} {
		if got := open(t, Config{}, c.servers...).Properties().Durability; got != c.want {
			t.Errorf("durability is %v, want %v", got, c.want)
		}
	}
	if _, err := Open(bg(t), Config{Servers: []string{none.Addr()}, WaitReplicas: 1}); !errors.Is(err, kvstore.ErrUnsupported) {
		t.Errorf("--wait-replicas without replicas: %v", err)
	}
	if none.Info("server", "redis_version") < "7.2" {
		if _, err := Open(bg(t), Config{Servers: []string{always.Addr()}, WaitAOF: true}); !errors.Is(err, kvstore.ErrUnsupported) || !strings.Contains(err.Error(), "7.2") {
			t.Errorf("--wait-aof on an old server: %v", err)
		}
	}
}
