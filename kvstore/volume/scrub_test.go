package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// leak puts the block of one LBA under the key of another one whose bit is off, as
// a crash between the key and the page leaves it.
func (r *rig) leak(v *Volume, lba uint64) {
	r.t.Helper()
	must(r.t, r.set.withChannel(ctx, func(ch kvstore.Channel) error {
		op := kvstore.Op{Code: kvstore.Write, Key: v.blockKey(lba), Seed: v.seed, Data: pattern(4096, 3), Fence: v.fence.Load()}
		ch.Do(ctx, []*kvstore.Op{&op})
		return op.Err
	}))
}

func (r *rig) scrub(name string, opt ScrubOptions) Scrub {
	r.t.Helper()
	s, err := r.set.Scrub(ctx, name, opt)
	must(r.t, err)
	if !s.Complete {
		r.t.Fatalf("not complete: %+v", s)
	}
	return s
}

// TestScrub: every kind of damage is found, counted and listed; leaks, also behind
// the end of the volume, are freed; a key whose deletion is pending is no leak.
func TestScrub(t *testing.T) {
	r := newRig(t, "mem3")
	const size = (bitsPerPage + 1000) * 4096
	r.create("v", size)
	r.create("other", 64*4096)
	v, other := r.open("v"), r.open("other")
	r.write(v, 0, pattern(300*4096, 1))
	r.write(v, (bitsPerPage+5)*4096, pattern(10*4096, 2))
	r.write(other, 0, pattern(8*4096, 3))
	if s := r.scrub("v", ScrubOptions{}); s.Blocks != size/4096 || s.Checked != 310 || s.Asked != 2*bitsPerPage-310 || !s.Lossless() || s.Leaked != 0 {
		t.Fatalf("nothing is wrong yet: %+v", s)
	}
	for _, lba := range []uint64{3, 4, 5, 290, bitsPerPage + 7} {
		r.mem().Drop(v.blockKey(lba))
	}
	r.mem().Corrupt(v.blockKey(100))
	r.mem().Misplace(v.blockKey(150), v.blockKey(101))
	r.mem().Misplace(other.blockKey(2), v.blockKey(102))
	leaks := []uint64{400, 31000, bitsPerPage + 999, bitsPerPage + 1001}
	for _, lba := range leaks {
		r.leak(v, lba)
	}
	must(t, r.do(Request{Kind: Discard, Vol: v, Off: 200 * 4096, N: 20 * 4096}))
	keys := r.mem().Blocks()
	s := r.scrub("v", ScrubOptions{})
	if s.Lost != 5 || s.Corrupt != 1 || s.Misplaced != 1 || s.Foreign != 1 || s.Lossless() || s.Leaked != 4 || s.Freed != 4 || s.Checked != 290 {
		t.Errorf("%+v", s)
	}
	var list []string
	for _, e := range s.Extents {
		list = append(list, fmt.Sprintf("%d+%d %s", e.First, e.Count, e.Class))
		if want := r.store.Locate(v.blockKey(e.First)).Server; e.Server != want {
			t.Errorf("%d is on %s, not %s", e.First, want, e.Server)
		}
	}
	if got := strings.Join(list, ", "); got != fmt.Sprintf("3+3 lost, 100+1 corrupt, 101+1 misplaced, 102+1 foreign, 290+1 lost, %d+1 lost", bitsPerPage+7) {
		t.Error(got)
	}
	for _, lba := range leaks {
		if slices.Contains(r.mem().Keys(), v.blockKey(lba)) {
			t.Errorf("leaked block %d is still there", lba)
		}
	}
	if rec, err := r.pool.Volume(ctx, "v"); err != nil || !rec.Damaged {
		t.Error("not marked as damaged", err)
	}
	r.reap(v)
	if n := r.mem().Blocks(); n != keys-len(leaks)-20 {
		t.Errorf("%d keys, want %d", n, keys-len(leaks)-20)
	}
}

// TestScrubFile: where the store keeps presence all extents are read.
func TestScrubFile(t *testing.T) {
	r := newRig(t, "file")
	r.create("v", 1<<30)
	v := r.open("v")
	r.write(v, 0, pattern(100*4096, 1))
	r.write(v, 1<<29, pattern(50*4096, 1))
	if s := r.scrub("v", ScrubOptions{}); s.Checked != 150 || !s.Lossless() || s.Blocks != 1<<18 {
		t.Errorf("%+v", s)
	}
	after := func(ops []*kvstore.Op) {
		for _, op := range ops {
			if op.Code == kvstore.Read && op.Key.Number == 7 {
				op.Err = &kvstore.OpError{Op: "read", Key: op.Key, Err: kvstore.ErrCorrupt}
			}
		}
	}
	r.store.after.Store(&after)
	defer r.store.after.Store(nil)
	if s := r.scrub("v", ScrubOptions{}); s.Corrupt != 1 || s.Extents[0].First != 7 {
		t.Errorf("%+v", s)
	}
}

// TestScrubPages: a page of any level that the store lost or has in an old version
// is stored again from the map in memory; one that nothing leads to is freed.
func TestScrubPages(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 5<<40) // three levels
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.write(v, 1<<30, pattern(4096, 2))
	r.flush(v)
	old := make([]byte, 4096)
	page := func(code kvstore.Code, id pageID, data []byte) {
		t.Helper()
		must(t, r.set.withChannel(ctx, func(ch kvstore.Channel) error {
			op := kvstore.Op{Code: code, Key: id.key(v.layer), Seed: v.seed, Data: data}
			ch.Do(ctx, []*kvstore.Op{&op})
			return op.Err
		}))
	}
	page(kvstore.Read, pageID{0, 0}, old)
	r.write(v, 4096, pattern(4096, 3))
	r.flush(v)
	page(kvstore.Write, pageID{0, 0}, old)
	r.mem().Drop(pageID{0, (1 << 18) / bitsPerPage}.key(v.layer))
	r.mem().Corrupt(pageID{1, 0}.key(v.layer))
	r.mem().Drop(pageID{2, 0}.key(v.layer))
	putPage(old, v.layer, pageID{0, 77}, pageVersion{1, 1}, nil)
	page(kvstore.Write, pageID{0, 77}, old)
	s := r.scrub("v", ScrubOptions{})
	if s.Pages != 4 || s.HealedPages != 4 || s.LeakedPages != 1 || !s.Lossless() {
		t.Errorf("%+v", s)
	}
	if s := r.scrub("v", ScrubOptions{}); s.Pages != 0 || s.LeakedPages != 0 {
		t.Errorf("the second time: %+v", s)
	}
	r.crash()
	r.loseState()
	v = r.open("v")
	for off, seed := range map[int64]byte{0: 1, 4096: 3, 1 << 30: 2} {
		if got := r.read(v, off, 4096); !bytes.Equal(got, pattern(4096, seed)) {
			t.Errorf("the block at %d is wrong after a crash of the machine", off)
		}
	}
	if rec, err := r.pool.Volume(ctx, "v"); err != nil || rec.Damaged {
		t.Error("marked as damaged", err)
	}
}

// TestScrubResumes: a scrub that was interrupted goes on where it was, also in
// another process, with what it found before; Restart begins anew; a scrub that
// ended does not.
func TestScrubResumes(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.StateDir = t.TempDir()
	r.create("v", 4*bitsPerPage*4096)
	v := r.open("v")
	for p := range int64(4) {
		r.write(v, p*bitsPerPage*4096, pattern(50*4096, 1))
	}
	r.mem().Drop(v.blockKey(7))
	r.mem().Drop(v.blockKey(3*bitsPerPage + 1))
	interrupted := func(at uint64, opt ScrubOptions) Scrub {
		t.Helper()
		ctx, cancel := context.WithCancel(ctx)
		opt.Progress = func(s Scrub) {
			if s.Next >= at {
				cancel()
			}
		}
		s, err := r.set.Scrub(ctx, "v", opt)
		if !errors.Is(err, kvstore.ErrAborted) || s.Complete {
			t.Fatalf("%v, %+v", err, s)
		}
		return s
	}
	s := interrupted(bitsPerPage+3, ScrubOptions{})
	if s.Resumed != 0 || s.Next < bitsPerPage+3 || s.Next > 2*bitsPerPage || s.Lost != 1 {
		t.Fatalf("%+v", s)
	}
	dir := r.set.opt.StateDir
	r.crash()
	r.set.opt.StateDir = dir
	r.open("v")
	two := interrupted(2*bitsPerPage, ScrubOptions{})
	if two.Resumed != s.Next || two.Next < 2*bitsPerPage {
		t.Fatalf("%+v", two)
	}
	before := r.mem().Counters().Reads
	all := r.scrub("v", ScrubOptions{})
	if all.Resumed != two.Next || all.Lost != 2 || all.Checked != 200 || len(all.Extents) != 2 || all.Begun != s.Begun {
		t.Errorf("%+v", all)
	}
	if n := r.mem().Counters().Reads - before; n > 2*bitsPerPage+100 {
		t.Errorf("%d reads for the second half", n)
	}
	if again := r.scrub("v", ScrubOptions{}); again.Resumed != 0 || again.Lost != 2 {
		t.Errorf("after the end: %+v", again)
	}
	interrupted(bitsPerPage, ScrubOptions{})
	if anew := r.scrub("v", ScrubOptions{Restart: true}); anew.Resumed != 0 || anew.Checked != 200 {
		t.Errorf("restarted: %+v", anew)
	}
}

// TestScrubRate: so many bytes are read per second and no more.
func TestScrubRate(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 1000*4096)
	v := r.open("v")
	r.write(v, 0, pattern(1000*4096, 1))
	began := time.Now()
	r.scrub("v", ScrubOptions{Rate: 16 << 20})
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("1000 blocks and 31512 keys took %v", took)
	}
}

// TestScrubBesideWriters: while blocks are written, rewritten in part, discarded
// and reaped, a scrub finds neither losses nor leaks, and disturbs nobody.
func TestScrubBesideWriters(t *testing.T) {
	seed := storetest.Seed(t.Logf)
	r := newRig(t, "mem3")
	r.set.reapDelay = time.Millisecond
	const blocks = 2000
	r.create("v", blocks*4096)
	v := r.open("v")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for id := range uint64(3) {
		wg.Go(func() {
			w, err := r.set.Worker(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Close()
			rnd := rand.New(rand.NewPCG(seed, id))
			buf := pattern(8*4096, byte(id))
			for {
				select {
				case <-stop:
					return
				default:
				}
				req := Request{Kind: Write, Vol: v, Off: rnd.Int64N((blocks - 8) * 4096), Data: buf[:1+rnd.IntN(len(buf))]}
				switch rnd.IntN(4) {
				case 0:
					req.Off = req.Off / 4096 * 4096
					req.Data = buf[:4096*(1+rnd.IntN(8))]
				case 1:
					req = Request{Kind: Discard, Vol: v, Off: req.Off, N: int64(len(req.Data))}
				}
				w.Do(ctx, []*Request{&req})
				if req.Err != nil {
					t.Error(req.Err)
					return
				}
			}
		})
	}
	for began := time.Now(); time.Since(began) < time.Second && !t.Failed(); {
		if s := r.scrub("v", ScrubOptions{}); !s.Lossless() || s.Leaked != 0 || s.Pages != 0 {
			t.Errorf("%+v", s)
		}
	}
	close(stop)
	wg.Wait()
	if c := v.Counters(); c.LostBlocks+c.CorruptBlocks+c.HealedBlocks != 0 {
		t.Errorf("%+v", c)
	}
}

// TestScrubAndClose: what is closed under a scrub ends it; a volume that is held
// elsewhere is refused; one at a time.
func TestScrubAndClose(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", bitsPerPage*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	other := New(r.pool, r.store, r.set.opt)
	if _, err := other.Scrub(ctx, "v", ScrubOptions{}); !errors.Is(err, ErrInUse) {
		t.Error(err)
	}
	_, err := r.set.Scrub(ctx, "v", ScrubOptions{Progress: func(s Scrub) {
		if _, err := r.set.Scrub(ctx, "v", ScrubOptions{}); !errors.Is(err, ErrInUse) {
			t.Error(err)
		}
		must(t, r.set.Close(ctx))
	}})
	if !errors.Is(err, kvstore.ErrClosed) {
		t.Error(err)
	}
	// Not open: opened, checked, closed.
	if s := r.scrub("v", ScrubOptions{}); s.Checked != 1 {
		t.Errorf("%+v", s)
	}
	if r.set.opened("v") != nil {
		t.Error("left open")
	}
	if _, ok, err := r.pool.Holder(ctx, "v"); ok || err != nil {
		t.Error("the lease is left", err)
	}
	if _, err := r.set.Scrub(ctx, "w", ScrubOptions{}); !errors.Is(err, pool.ErrNoVolume) {
		t.Error(err)
	}
}

// TestScrubShrunk: of a volume that was made smaller a scrub frees what leaked in the
// page that its end lies in, and does not look into pages that it no longer has.
func TestScrubShrunk(t *testing.T) {
	r := newRig(t, "mem")
	r.create("v", 3*bitsPerPage*4096)
	v := r.open("v")
	r.write(v, 0, pattern(4*4096, 1))
	r.write(v, 2*bitsPerPage*4096, pattern(4*4096, 2))
	must(t, v.Close(ctx))
	must(t, r.set.Resize(ctx, "v", (bitsPerPage/2)*4096, true))
	v = r.open("v")
	within, outside := uint64(bitsPerPage-3), uint64(2*bitsPerPage+1)
	r.leak(v, within)
	r.leak(v, outside)
	if s := r.scrub("v", ScrubOptions{}); s.Leaked != 1 || s.Freed != 1 || !s.Lossless() {
		t.Errorf("%+v", s)
	}
	if slices.Contains(r.mem().Keys(), v.blockKey(within)) {
		t.Error("a leaked block in the last page is still there")
	}
	if !slices.Contains(r.mem().Keys(), v.blockKey(outside)) {
		t.Error("a block beyond the last page was found: say so in docs/semantics.md")
	}
	// It does no harm: the volume grows over it, and reads zeros there.
	must(t, v.Close(ctx))
	must(t, r.set.Resize(ctx, "v", 3*bitsPerPage*4096, false))
	v = r.open("v")
	if got := r.read(v, int64(outside)*4096, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("it reads what was behind its end")
	}
	if s := r.scrub("v", ScrubOptions{}); !s.Lossless() {
		t.Errorf("after it grew again: %+v", s)
	}
}
