package volume

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// aliveTTL is the TTL of a holder that others must see alive: it has to renew in time,
// also on a machine that does not let it run for a while. Where a lease runs out a test
// has a shorter one.
const aliveTTL = time.Second

// machine returns a second machine on the store of a rig.
func (r *rig) machine(opt Options) *Set {
	r.t.Helper()
	return r.machineOn(r.store, opt)
}

// machineOn is machine with something between it and the store.
func (r *rig) machineOn(st kvstore.Store, opt Options) *Set {
	r.t.Helper()
	p, err := pool.Open(ctx, st, pool.Options{URL: "test:", StateDir: r.t.TempDir(), RuntimeDir: r.t.TempDir()})
	must(r.t, err)
	opt.RuntimeDir, opt.Lease.TTL = r.t.TempDir(), aliveTTL
	s := New(p, st, opt)
	r.t.Cleanup(func() {
		if err := s.Close(ctx); err != nil && !errors.Is(err, pool.ErrHeld) {
			r.t.Error(err)
		}
		_ = p.Close()
	})
	return s
}

func readOn(s *Set, v *Volume, off int64, n int) ([]byte, error) {
	w, err := s.Worker(ctx)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	req := Request{Kind: Read, Vol: v, Off: off, Data: make([]byte, n)}
	w.Do(ctx, []*Request{&req})
	return req.Data, req.Err
}

// TestReadersOfTwoMachines: while a volume is open for reading on several machines
// nobody may write to it; while it is open for writing nobody else may read it. An
// upgrade in place needs to be alone.
func TestReadersOfTwoMachines(t *testing.T) {
	for _, kind := range []string{"mem", "file"} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, kind)
			r.set.opt.Lease.TTL = aliveTTL
			r.create("v", 1<<20)
			v := r.open("v")
			want := pattern(4*4096, 1)
			r.write(v, 0, want)
			must(t, v.Close(ctx))
			other := r.machine(Options{})
			mine, err := r.set.Open(ctx, "v", false)
			must(t, err)
			theirs, err := other.Open(ctx, "v", false)
			must(t, err)
			for s, v := range map[*Set]*Volume{r.set: mine, other: theirs} {
				if got, err := readOn(s, v, 0, len(want)); err != nil || !bytes.Equal(got, want) {
					t.Fatal("a reader reads something else", err)
				}
			}
			info, err := r.set.Info(ctx, "v")
			if err != nil || info.Holder != nil || len(info.Readers) != 2 {
				t.Fatal(info.Holder, info.Readers, err)
			}
			if _, err := r.set.Open(ctx, "v", true); !errors.Is(err, pool.ErrHeld) {
				t.Fatalf("opened for writing beside a reader: %v", err)
			}
			if _, err := readOn(r.set, mine, 0, 4096); err != nil {
				t.Fatal("after an upgrade that was refused:", err)
			}
			must(t, theirs.Close(ctx))
			up, err := r.set.Open(ctx, "v", true)
			must(t, err)
			r.write(up, 4096, pattern(4096, 2))
			if _, err := other.Open(ctx, "v", false); !errors.Is(err, pool.ErrHeld) {
				t.Fatalf("opened for reading beside a writer: %v", err)
			}
			must(t, up.Close(ctx))
			must(t, mine.Close(ctx))
			theirs, err = other.Open(ctx, "v", false)
			must(t, err)
			if got, err := readOn(other, theirs, 4096, 4096); err != nil || !bytes.Equal(got, pattern(4096, 2)) {
				t.Fatal("what was written meanwhile is not read", err)
			}
			must(t, theirs.Close(ctx))
		})
	}
}

// TestOvertakenReader: a reader whose share was taken away gives errors, never what
// is mixed of old and new, nor a loss; also for holes and extents. It is opened
// again when it was closed everywhere.
func TestOvertakenReader(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = aliveTTL
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(2*4096, 1))
	must(t, v.Close(ctx))
	reader := r.machine(Options{})
	old, err := reader.Open(ctx, "v", false)
	must(t, err)
	must(t, r.pool.Break(ctx, "v", true))
	v = r.open("v")
	must(t, r.do(Request{Kind: Discard, Vol: v, Off: 0, N: 4096}))
	r.flush(v)
	must(t, v.Close(ctx)) // deletes the key
	for _, off := range []int64{0, 4096, 64 * 4096} {
		if _, err := readOn(reader, old, off, 4096); !errors.Is(err, ErrOvertaken) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if _, err := old.SeekData(ctx, 0); !errors.Is(err, ErrOvertaken) {
		t.Errorf("seek: %v", err)
	}
	for _, write := range []bool{false, true} {
		if _, err := reader.Open(ctx, "v", write); !errors.Is(err, pool.ErrHeld) {
			t.Errorf("opened again beside old readers, write %v: %v", write, err)
		}
	}
	if rec, err := r.pool.Volume(ctx, "v"); err != nil || rec.Damaged {
		t.Error("a discarded block was taken for lost", err)
	}
	if c := old.Counters(); c.LostBlocks != 0 {
		t.Errorf("%+v", c)
	}
	must(t, old.Close(ctx))
	again, err := reader.Open(ctx, "v", false)
	must(t, err)
	got, err := readOn(reader, again, 0, 2*4096)
	if err != nil || !bytes.Equal(got[:4096], make([]byte, 4096)) || !bytes.Equal(got[4096:], pattern(2*4096, 1)[4096:]) {
		t.Error("after it was opened again", err)
	}
	must(t, again.Close(ctx))
}

// TestStale: without a lease a volume is read while somebody writes to it, keeps
// nobody out, and never marks it as damaged.
func TestStale(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = 60 * time.Millisecond
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4*4096, 1))
	r.flush(v)
	stale := r.machine(Options{Stale: true})
	old, err := stale.Open(ctx, "v", false)
	must(t, err)
	r.write(v, 4096, pattern(4096, 2))
	r.write(v, 8*4096, pattern(4096, 3))
	must(t, r.do(Request{Kind: Discard, Vol: v, Off: 2 * 4096, N: 4096}))
	r.flush(v)
	must(t, v.Close(ctx)) // deletes the key
	v = r.open("v")       // nobody is kept out
	was := r.mem().Counters()
	if got, err := readOn(stale, old, 8*4096, 4096); err != nil || !zero(got) {
		t.Error("a block that was new", err)
	}
	if got, err := readOn(stale, old, 0, 4096); err != nil || !bytes.Equal(got, pattern(4096, 1)) {
		t.Error("a block that nobody touched", err)
	}
	if got, err := readOn(stale, old, 4096, 4096); err != nil || !bytes.Equal(got, pattern(4096, 2)) {
		t.Error("a block that was overwritten", err)
	}
	if _, err := readOn(stale, old, 2*4096, 4096); !errors.Is(err, ErrLost) {
		t.Error("a block that was discarded:", err)
	}
	if rec, err := r.pool.Volume(ctx, "v"); err != nil || rec.Damaged {
		t.Error("a stale reader marked it as damaged", err)
	}
	info, err := stale.Info(ctx, "v")
	if err != nil || info.Holder == nil || info.Readers != nil {
		t.Error(info.Holder, info.Readers, err)
	}
	must(t, old.Close(ctx))
	if now := r.mem().Counters(); now.Writes != was.Writes || now.Discards != was.Discards {
		t.Error("a stale reader writes to the store")
	}
	must(t, v.Close(ctx))
}
