//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// Rows 6 to 10 of the fault matrix, in short: what happens to the data of a
// server, on real servers. docs/testing.md has the table.

// counted asks for a volume's counters in both places that tell them.
func counted(t *testing.T, r *rig.Rig, m *rig.Mount, volume string) map[string]uint64 {
	t.Helper()
	var status []struct {
		Volumes []struct {
			Name     string            `json:"name"`
			Counters map[string]uint64 `json:"counters"`
		} `json:"volumes"`
	}
	if err := json.Unmarshal([]byte(r.Kvbfs("status", m.Dir, "--json")), &status); err != nil || len(status) != 1 {
		t.Fatalf("status --json: %v", err)
	}
	var stats struct {
		Volumes map[string]map[string]uint64 `json:"volumes"`
	}
	if b, err := os.ReadFile(filepath.Join(m.Dir, ".stats")); err != nil || json.Unmarshal(b, &stats) != nil {
		t.Fatalf(".stats: %v", err)
	}
	for _, v := range status[0].Volumes {
		if v.Name != volume {
			continue
		}
		for _, name := range []string{"LostBlocks", "CorruptBlocks", "MisplacedBlocks", "ForeignBlocks", "HealedBlocks"} {
			if n, ok := stats.Volumes[volume][name]; !ok || n != v.Counters[name] {
				t.Errorf("%s is %d in status and %d in .stats", name, v.Counters[name], n)
			}
		}
		return v.Counters
	}
	t.Fatalf("status does not tell of volume %s", volume)
	return nil
}

// logged returns how many lines of the daemon's log have all words.
func logged(t *testing.T, r *rig.Rig, words ...string) (n int) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal("no log", err)
	}
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
	lines:
		for line := range strings.Lines(string(text)) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			n++
		}
	}
	return n
}

// TestServerEmptied is row 6: a server comes back empty, after a pause, while
// requests are on their way to it, or without any connection breaking, by a
// neighbour's flush_all. Nothing that was written reads as anything but EIO, each
// flush fails, and the volume is not opened again.
func TestServerEmptied(t *testing.T) {
	rig.RequireFUSE(t)
	const blocks = 64
	for _, c := range []struct {
		name string
		busy bool // requests are on their way
		how  func(s *rig.Memcached)
		// first is how it is found: by a read, a write, or a flush.
		first string
	}{
		{"restart", false, func(s *rig.Memcached) { s.Kill(); s.Start() }, "read"},
		{"restart, flush first", false, func(s *rig.Memcached) { s.Kill(); s.Start() }, "flush"},
		{"restart within a try", true, func(s *rig.Memcached) { s.Kill(); s.Start() }, "read"},
		{"flush_all, read first", false, func(s *rig.Memcached) { s.Ask("flush_all") }, "read"},
		{"flush_all, write first", false, func(s *rig.Memcached) { s.Ask("flush_all") }, "part"},
		{"flush_all, flush first", false, func(s *rig.Memcached) { s.Ask("flush_all") }, "flush"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, time.Minute)
			srv := r.Flushable(64)
			r.Create(srv.URL(), "v", "16M")
			m := r.Mount(srv.URL())
			f := rig.Direct(t, m.Image("v"))
			fill(t, f, blocks, 1)
			ended := make(chan error, 8)
			if c.busy {
				srv.Stop() // they wait for it, and are sent again to the empty one
				for i := range int64(cap(ended)) {
					go func() {
						buf := rig.Aligned(rig.BlockSize)
						if i%2 == 0 || r.Defers() { // then writes would not wait
							ended <- f.ReadAt(buf, i*rig.BlockSize)
							return
						}
						rig.Stamp(buf, i, 2)
						ended <- f.WriteAt(buf, i*rig.BlockSize)
					}()
				}
				time.Sleep(300 * time.Millisecond) // no assertion hangs on it: any moment will do
			} else {
				close(ended)
			}
			c.how(srv)
			for i := range cap(ended) {
				if !c.busy {
					break
				}
				if err := <-ended; !errors.Is(err, unix.EIO) {
					t.Errorf("request %d that was on its way: %v, want EIO", i, err)
				}
			}
			eio := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, unix.EIO) {
					t.Errorf("%s: %v, want EIO", what, err)
				}
			}
			switch c.first {
			case "flush":
				eio("the first flush", f.Sync())
			case "part":
				p, err := rig.OpenPlain(m.Image("v"))
				if err != nil {
					t.Fatal(err)
				}
				eio("the first write of a part of a block", errors.Join(p.WriteAt([]byte("x"), 5), p.Sync()))
				p.Close()
			}
			if whole, _, zeros := holds(t, f, blocks, 1); whole+zeros > 0 {
				t.Errorf("%d blocks of an emptied server are whole and %d are zeros", whole, zeros)
			}
			for range 3 {
				eio("a flush", f.Sync())
			}
			f.Close()
			m.Kill()
			if res := r.TryKvbfs("mount", m.Dir, "--store", srv.URL()); res.Code != 1 || !strings.Contains(res.Stderr, "pool forget") {
				t.Errorf("mounting again: status %d\n%s", res.Code, res.All())
			}
			// All of the pool was there, so there is nothing that could be repaired.
			if res := r.TryKvbfs("volume", "repair", "v", "--accept-loss", "--store", srv.URL()); res.Code != 1 || !strings.Contains(res.Stderr, "pool forget") {
				t.Errorf("repair: status %d\n%s", res.Code, res.All())
			}
		})
	}
}

// TestLostKeys is row 7: exactly the blocks whose keys are gone are EIO; scrub,
// which runs while the volume is used, finds and lists them, and finds and frees a
// key that nobody needs; writing them anew heals them.
func TestLostKeys(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	lostKeys(t, r, r.Memcached(64).Engine(), "v")
}

func lostKeys(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	store := e.URL()
	const blocks = 200
	r.Create(store, v, "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image(v))
	fill(t, f, blocks, 1)
	if d := report(t, r, 0, "scrub", v, "--store", store); !d.Complete || d.Checked != blocks || d.Lost != 0 {
		t.Errorf("scrub of a volume that is whole: %+v", d)
	}
	gone := []int64{3, 4, 5, 77, 199}
	at := map[int64]string{} // a cluster places each block
	for _, lba := range gone {
		p := r.Where(store, v, lba*rig.BlockSize)
		if !e.Delete(p) {
			t.Fatalf("no key %s", p.Key)
		}
		at[lba] = p.Server
	}
	// What a crash between the key and the page leaves: a block where there is none.
	leak := r.Where(store, v, 300*rig.BlockSize)
	e.SetItem(leak, e.Item(r.Where(store, v, 0)))
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for range 2 {
		for i := range int64(blocks) {
			err := f.ReadAt(buf, i*rig.BlockSize)
			rig.Stamp(want, i, 1)
			if lost := slices.Contains(gone, i); lost != errors.Is(err, unix.EIO) || !lost && (err != nil || string(buf) != string(want)) {
				t.Fatalf("block %d: %v", i, err)
			}
		}
	}
	if n := counted(t, r, m, v)["LostBlocks"]; n != 2*uint64(len(gone)) {
		t.Errorf("%d reads met a lost block, counted %d", 2*len(gone), n)
	}
	d := report(t, r, 1, "scrub", v, "--store", store, "--rate", "0")
	var list []string
	for _, e := range d.Extents {
		list = append(list, fmt.Sprintf("%d+%d %s %s", e.First, e.Count, e.Class, e.Server))
	}
	if got, want := strings.Join(list, ", "), lostList(gone, at); got != want {
		t.Errorf("scrub lists %s, want %s", got, want)
	}
	if d.Lost != 5 || d.Leaked != 1 || d.Freed != 1 || e.Delete(leak) {
		t.Errorf("scrub: %+v", d)
	}
	for _, lba := range gone {
		if n := logged(t, r, "volume "+v+": ", fmt.Sprintf("block %d ", lba), "is lost", at[lba]); n != 1 {
			t.Errorf("the loss of block %d is logged %d times", lba, n)
		}
		rig.Stamp(buf, lba, 1)
		if err := f.WriteAt(buf, lba*rig.BlockSize); err != nil {
			t.Errorf("writing lost block %d anew: %v", lba, err)
		}
	}
	if n := counted(t, r, m, v)["HealedBlocks"]; n != uint64(len(gone)) {
		t.Errorf("%d blocks healed, want %d", n, len(gone))
	}
	if whole, _, _ := holds(t, f, blocks, 1); whole != blocks {
		t.Errorf("%d of %d blocks are whole after they were written anew", whole, blocks)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("flush after single keys were lost: %v", err)
	}
	report(t, r, 0, "scrub", v, "--store", store)
	f.Close()
	m.Umount()
	report(t, r, 0, "scrub", v, "--store", store) // without a mount
}

// TestScrubInterrupted: a scrub whose caller goes away says where it goes on.
func TestScrubInterrupted(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	store := r.Memcached(64).URL()
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 2000, 1)
	res := r.Try("timeout", "--preserve-status", "-s", "INT", "3", r.Bin, "scrub", "v", "--store", store, "--rate", "1M")
	if res.Code != 130 || !strings.Contains(res.Stderr, "goes on") {
		t.Errorf("interrupted: status %d\n%s", res.Code, res.All())
	}
	// The daemon ends its scrub when it notices that the caller is gone.
	rig.Eventually(t, 30*time.Second, "the first scrub has ended", func() bool {
		res = r.TryKvbfs("scrub", "v", "--store", store, "--rate", "0", "--json")
		return !strings.Contains(res.Stderr, "being scrubbed already")
	})
	var d damage
	if err := json.Unmarshal([]byte(res.Stdout), &d); err != nil || res.Code != 0 || d.Resumed == 0 || d.Checked != 2000 || !d.Complete {
		t.Errorf("%v, %+v\n%s", err, d, res.Stderr)
	}
	if !strings.Contains(res.Stderr, fmt.Sprintf("going on at block %d of 16384", d.Resumed)) {
		t.Errorf("it does not say where it goes on: %s", res.Stderr)
	}
	f.Close()
	m.Umount()
}

// TestSpoiledBlocks is row 8: values that were cut, lengthened, changed by a bit,
// or are those of another block, another volume or another program. Each is EIO,
// has its own counter and one line in the log; none is ever given out.
func TestSpoiledBlocks(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	spoiledBlocks(t, r, r.Memcached(64).Engine(), "v")
}

// badSum changes the checksum that is stored with a block, noSum takes it away.
// memcached has it in the flags, the others behind the data.
func badSum(it *rig.Item) {
	if it.Flags != "" {
		it.Flags = "2147483648"
		return
	}
	it.Data[rig.BlockSize] ^= 1
}

func noSum(it *rig.Item) {
	if it.Flags != "" {
		it.Flags = "0"
		return
	}
	clear(it.Data[rig.BlockSize:])
}

func spoiledBlocks(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	store := e.URL()
	const blocks = 32
	other := v + "-other"
	r.Create(store, v, "16M")
	r.Create(store, other, "16M")
	m := r.Mount(store)
	f, g := rig.Direct(t, m.Image(v)), rig.Direct(t, m.Image(other))
	fill(t, f, blocks, 1)
	fill(t, g, blocks, 1)
	where := map[int64]rig.Place{}
	item := func(volume string, lba int64) (rig.Place, rig.Item) {
		p := r.Where(store, volume, lba*rig.BlockSize)
		return p, e.Item(p)
	}
	spoil := func(lba int64, change func(it *rig.Item)) {
		p, it := item(v, lba)
		change(&it)
		e.SetItem(p, it)
		where[lba] = p
	}
	unsummed := "foreign" // what has no checksum is not ours, where that can be seen
	if e.Kind() != "memcached" {
		unsummed = "corrupt"
	}
	classes, count := map[int64]string{}, map[string]uint64{}
	for i, c := range []struct {
		class  string
		change func(it *rig.Item)
	}{
		{"", func(*rig.Item) {}}, // the method is sound
		{"corrupt", func(it *rig.Item) { it.Data = it.Data[:4000] }},
		{"corrupt", func(it *rig.Item) { it.Data = nil }},
		{"corrupt", func(it *rig.Item) { it.Data = append(it.Data, 0) }},
		{"corrupt", func(it *rig.Item) { it.Data = append(it.Data, it.Data...) }},
		{"corrupt", func(it *rig.Item) { it.Data[0] ^= 1 }},
		{"corrupt", func(it *rig.Item) { it.Data[4095] ^= 0x80 }},
		{"corrupt", badSum},
		{unsummed, noSum},
		{"foreign", func(it *rig.Item) { _, *it = item(other, 9) }},
		{"misplaced", func(it *rig.Item) { _, *it = item(v, 20) }},
		{"misplaced", func(it *rig.Item) { _, *it = item(v, 12) }},
	} {
		spoil(int64(i), c.change)
		if c.class != "" {
			classes[int64(i)] = c.class
		}
	}
	// Two that change places.
	p12, it12 := item(v, 12)
	p13, it13 := item(v, 13)
	e.SetItem(p12, it13)
	e.SetItem(p13, it12)
	where[12], where[13] = p12, p13
	classes[12], classes[13] = "misplaced", "misplaced"
	for _, class := range classes {
		count[class]++
	}

	// Some are found by a scrub, all by reads, one by one and in a row.
	report(t, r, 1, "scrub", v, "--store", store)
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range int64(blocks) {
		err := f.ReadAt(buf, i*rig.BlockSize)
		rig.Stamp(want, i, 1)
		if bad := classes[i] != ""; bad != errors.Is(err, unix.EIO) || !bad && (err != nil || string(buf) != string(want)) {
			t.Errorf("block %d (%s): %v", i, classes[i], err)
		}
	}
	if err := f.ReadAt(rig.Aligned(blocks*rig.BlockSize), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("a read across all of them: %v", err)
	}
	d := report(t, r, 1, "scrub", v, "--store", store)
	if d.Corrupt != count["corrupt"] || d.Misplaced != count["misplaced"] || d.Foreign != count["foreign"] || d.Lost != 0 {
		t.Errorf("scrub: %+v, want %v", d, count)
	}
	n := counted(t, r, m, v)
	if n["CorruptBlocks"] < count["corrupt"] || n["MisplacedBlocks"] < count["misplaced"] || n["ForeignBlocks"] < count["foreign"] || n["LostBlocks"] != 0 {
		t.Errorf("counters: %v, want %v", n, count)
	}
	for lba, class := range classes {
		if n := logged(t, r, "volume "+v+": ", fmt.Sprintf("block %d (offset ", lba), "is "+class, where[lba].Server); n != 1 {
			t.Errorf("block %d is logged as %s %d times", lba, class, n)
		}
		rig.Stamp(buf, lba, 1)
		if err := f.WriteAt(buf, lba*rig.BlockSize); err != nil {
			t.Errorf("writing block %d anew: %v", lba, err)
		}
	}
	if n := counted(t, r, m, v)["HealedBlocks"]; n != uint64(len(classes)) {
		t.Errorf("%d of %d blocks are counted as healed", n, len(classes))
	}
	if whole, _, _ := holds(t, f, blocks, 1); whole != blocks {
		t.Errorf("%d of %d blocks are whole after they were written anew", whole, blocks)
	}
	if whole, _, _ := holds(t, g, blocks, 1); whole != blocks {
		t.Errorf("the other volume has %d of %d blocks", whole, blocks)
	}
	f.Close()
	g.Close()
	m.Umount()
}
