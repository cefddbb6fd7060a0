package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// below is a store that outlives the daemons on it.
type below struct{ kvstore.Store }

func (below) Close() error { return nil }

// deferRig is a rig whose overwrites are deferred.
type deferRig struct {
	*rig
	mem *mem.Store
	cfg writeback.Config
	wb  *writeback.Store
}

func newDeferRig(t testing.TB, mc mem.Config, cfg writeback.Config) *deferRig {
	t.Helper()
	mc.Reserve = true
	cfg.Log = t.Logf
	d := &deferRig{mem: mem.New(mc), cfg: cfg}
	d.wrap(t)
	d.rig = newRigOn(t, "write-back", d.wb)
	d.hook()
	return d
}

func (d *deferRig) wrap(t testing.TB) {
	t.Helper()
	var err error
	d.wb, err = writeback.Wrap(below{checked(t, d.mem)}, d.cfg)
	must(t, err)
}

func (d *deferRig) hook() { d.set.opt.Opened, d.set.opt.Closed = d.wb.Opened, d.wb.Closed }

// crash is rig.crash: what is dirty goes with the daemon.
func (d *deferRig) crash() {
	d.t.Helper()
	must(d.t, d.w.Close())
	d.w = nil
	for _, v := range d.set.open {
		v.reaper.halt()
	}
	must(d.t, d.wb.Close())
	d.wrap(d.t)
	d.store = checked(d.t, d.wb)
	d.rig.crash()
	d.hook()
}

func (d *deferRig) deferred() uint64 { return d.wb.Stats().Deferred }

// TestModelDeferred is TestModel with write-back. After a crash of the daemon, or of
// the machine, each block is one of those that it was since the last flush, whole: so
// what was flushed is there, and nothing of what came after it without it.
func TestModelDeferred(t *testing.T) {
	for name, cfg := range map[string]writeback.Config{
		"kept":    {MaxDirty: 8 << 20, MaxAge: time.Hour},
		"drained": {MaxDirty: 8 << 20, MaxAge: time.Millisecond},
		"small":   {MaxDirty: 16 * kvstore.BlockSize, MaxAge: 5 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			seed := storetest.Seed(t.Logf)
			m := newDeferModel(t, cfg, rand.New(rand.NewPCG(seed, 0)))
			steps := 1500
			if testing.Short() {
				steps = 100
			}
			// However slow the machine is, something is deferred before the time is over.
			for i, began := 0, time.Now(); i < steps && (time.Since(began) < modelTime || m.count+m.d.deferred() == 0); i++ {
				what := m.step()
				if t.Failed() {
					t.Fatalf("step %d: %s", i, what)
				}
			}
			m.check("the end")
			m.count += m.d.deferred()
			t.Logf("%d writes deferred, %d crashes", m.count, m.crashes)
			if m.count == 0 && !testing.Short() {
				t.Error("no write was deferred: not much of a test")
			}
		})
	}
}

// deferModel knows, for each block, what it was since the last flush.
type deferModel struct {
	*model
	d       *deferRig
	since   [][][]byte
	count   uint64 // of deferred writes
	crashes int
}

func newDeferModel(t *testing.T, cfg writeback.Config, rnd *rand.Rand) *deferModel {
	const blocks = 300
	d := newDeferRig(t, mem.Config{Servers: 3}, cfg)
	d.create("v", blocks*kvstore.BlockSize)
	m := &deferModel{d: d, model: &model{rig: d.rig, t: t, rnd: rnd, v: d.open("v"), want: make([]byte, blocks*kvstore.BlockSize)}}
	m.flushed()
	return m
}

func (m *deferModel) block(b int) []byte {
	return m.want[b*kvstore.BlockSize : (b+1)*kvstore.BlockSize]
}

func (m *deferModel) flushed() {
	m.settled()
	m.since = make([][][]byte, len(m.want)/kvstore.BlockSize)
	for b := range m.since {
		m.since[b] = [][]byte{bytes.Clone(m.block(b))}
	}
}

func (m *deferModel) step() string {
	switch k := m.rnd.IntN(100); {
	case k < 75:
		m.requests()
		for b := range m.since {
			if last := m.since[b][len(m.since[b])-1]; !bytes.Equal(last, m.block(b)) {
				m.since[b] = append(m.since[b], bytes.Clone(m.block(b)))
			}
		}
		return "requests"
	case k < 83:
		m.flush(m.v)
		m.flushed()
		return "flush"
	case k < 87:
		m.reap(m.v)
		return "reap"
	case k < 89:
		must(m.t, m.v.Close(ctx))
		m.v = m.open("v")
		m.flushed()
		return "reopen"
	case k < 94:
		m.crash(false)
		return "crash"
	case k < 96:
		m.crash(true)
		return "crash of the machine"
	default:
		m.check("check")
		return "check"
	}
}

// crash ends the daemon, with its local state or without.
func (m *deferModel) crash(machine bool) {
	m.crashes++
	m.count += m.d.deferred()
	m.d.crash()
	if machine {
		m.loseState()
	}
	m.v = m.open("v")
	got := m.read(m.v, 0, int64(len(m.want)))
	for b, versions := range m.since {
		g := got[b*kvstore.BlockSize : (b+1)*kvstore.BlockSize]
		fits := false
		for _, v := range versions {
			fits = fits || bytes.Equal(g, v)
		}
		if !fits {
			m.t.Errorf("block %d is none of the %d contents that it had since the last flush", b, len(versions))
		}
	}
	copy(m.want, got)
	m.flushed()
	m.check("after the crash")
}

// A discard of a block while its write is being deferred: after a crash the block is
// not what it was before the discard, which was flushed.
func TestDeferredAgainstDiscard(t *testing.T) {
	d := newDeferRig(t, mem.Config{}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 64*kvstore.BlockSize)
	v := d.open("v")
	old, fresh := pattern(kvstore.BlockSize, 1), pattern(kvstore.BlockSize, 2)
	d.write(v, 0, old)
	d.flush(v)
	once := true
	before := d.deferred()
	after := func(ops []*kvstore.Op) {
		// The write is acknowledged below, and not noted yet above.
		if ops[0].Code == kvstore.Write && ops[0].Key.Kind == kvstore.KindBlock && once {
			once = false
			// What is dirty is stored by its flush, but what is deferred later is not.
			d.discardAndFlush(v)
		}
	}
	d.store.after.Store(&after)
	d.write(v, 0, fresh)
	d.store.after.Store(nil)
	if once || d.deferred() == before {
		t.Fatal("the write was not deferred")
	}
	d.discardStays(v, old, fresh)
}

// The same with the discard, and its flush, before the write is deferred: that flush has
// nothing of it to wait for.
func TestDeferredAfterFlushedDiscard(t *testing.T) {
	d := newDeferRig(t, mem.Config{}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 64*kvstore.BlockSize)
	v := d.open("v")
	old, fresh := pattern(kvstore.BlockSize, 1), pattern(kvstore.BlockSize, 2)
	d.write(v, 0, old)
	d.flush(v)
	once := true
	deferred := d.deferred()
	before := func(_ context.Context, ops []*kvstore.Op) {
		// The write has its claim and has found the block present.
		if ops[0].Code == kvstore.Write && ops[0].Key.Kind == kvstore.KindBlock && once {
			once = false
			d.discardAndFlush(v)
		}
	}
	d.store.before.Store(&before)
	d.write(v, 0, fresh)
	d.store.before.Store(nil)
	if once || d.deferred() == deferred {
		t.Fatal("the write was not deferred")
	}
	d.discardStays(v, old, fresh)
}

// A write that only a lease holds up is deferred no more; a flush waits for the lease.
func TestDeferredAndLease(t *testing.T) {
	d := newDeferRig(t, mem.Config{}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 64*kvstore.BlockSize)
	v := d.open("v")
	d.write(v, 0, pattern(kvstore.BlockSize, 1))
	d.flush(v)
	want := pattern(kvstore.BlockSize, 2)
	d.write(v, 0, want)
	if d.wb.Stats().Dirty == 0 {
		t.Fatal("nothing is dirty")
	}
	v.fence.Load().Open(kvstore.Boottime() - 1) // until the lease is renewed, which Wait has done
	d.flush(v)
	if d.wb.Stats().Dirty != 0 {
		t.Error("the flush left something dirty")
	}
	d.crash()
	v = d.open("v")
	if got := d.read(v, 0, kvstore.BlockSize); !bytes.Equal(got, want) {
		t.Error("what was flushed is not there")
	}
}

// An aborted volume is left as by a crash: what was flushed is there, what was dirty is
// what it was before.
func TestDeferredAbort(t *testing.T) {
	d := newDeferRig(t, mem.Config{}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 64*kvstore.BlockSize)
	v := d.open("v")
	stable := pattern(kvstore.BlockSize, 1)
	d.write(v, 0, stable)
	d.flush(v)
	d.write(v, 0, pattern(kvstore.BlockSize, 2))
	must(t, d.set.Abort("v"))
	must(t, v.Close(ctx))
	if n := d.wb.Stats(); n.Dirty != 0 || n.Dropped != 1 {
		t.Errorf("after the abort: %+v", n)
	}
	v = d.open("v")
	if got := d.read(v, 0, kvstore.BlockSize); !bytes.Equal(got, stable) {
		t.Errorf("after the abort: %s", firstDiff(got, stable))
	}
}

// On a full store overwrites are deferred and flushed; new blocks get ErrFull at once.
func TestDeferredWhenFull(t *testing.T) {
	d := newDeferRig(t, mem.Config{CapacityBlocks: 20}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 64*kvstore.BlockSize)
	v := d.open("v")
	n := int64(0)
	for ; n < 64; n++ {
		if d.do(Request{Kind: Write, Vol: v, Off: n * kvstore.BlockSize, Data: pattern(kvstore.BlockSize, 1)}) != nil {
			break
		}
	}
	if n == 0 || n == 64 {
		t.Fatalf("%d blocks fit", n)
	}
	d.flush(v)
	for i := range n {
		d.write(v, i*kvstore.BlockSize, pattern(kvstore.BlockSize, 3))
	}
	if got := d.deferred(); got != uint64(n) {
		t.Errorf("%d of %d overwrites were deferred", got, n)
	}
	err := d.do(Request{Kind: Write, Vol: v, Off: n * kvstore.BlockSize, Data: pattern(kvstore.BlockSize, 1)})
	if !errors.Is(err, kvstore.ErrFull) {
		t.Errorf("a new block on a full store: %v", err)
	}
	d.flush(v)
	d.crash()
	v = d.open("v")
	for i := range n {
		if got := d.read(v, i*kvstore.BlockSize, kvstore.BlockSize); !bytes.Equal(got, pattern(kvstore.BlockSize, 3)) {
			t.Errorf("block %d: what was flushed is not there", i)
		}
	}
}

// A server that was emptied: flushes fail for good, and writes that were deferred
// before it was noticed are not acknowledged any more.
func TestDeferredServerLost(t *testing.T) {
	d := newDeferRig(t, mem.Config{Servers: 2}, writeback.Config{MaxDirty: 1 << 20, MaxAge: time.Hour})
	d.create("v", 256*kvstore.BlockSize)
	v := d.open("v")
	d.write(v, 0, pattern(256*kvstore.BlockSize, 1))
	d.flush(v)
	d.write(v, 0, pattern(256*kvstore.BlockSize, 2))
	d.mem.Forget(1)
	for range 2 {
		if err := d.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, kvstore.ErrServerLost) {
			t.Errorf("flush: %v", err)
		}
	}
	before := d.deferred()
	_ = d.do(Request{Kind: Write, Vol: v, Data: pattern(256*kvstore.BlockSize, 3)})
	if d.deferred() != before {
		t.Error("writes are deferred though no flush can succeed")
	}
}

// The last close of a volume one of whose servers was emptied, while its lease is being
// renewed: what was deferred for the servers that are left waits for the lease.
func TestDeferredRestWaitsForLease(t *testing.T) {
	const blocks, part, half = 1024, 256 * kvstore.BlockSize, 512
	d := newDeferRig(t, mem.Config{Servers: 2}, writeback.Config{MaxDirty: 16 << 20, MaxAge: time.Hour})
	d.create("v", blocks*kvstore.BlockSize)
	v := d.open("v")
	for off := int64(0); off < blocks*kvstore.BlockSize; off += part {
		d.write(v, off, pattern(part, 1))
	}
	d.flush(v)
	for off := int64(0); off < half*kvstore.BlockSize; off += part {
		d.write(v, off, pattern(part, 2))
	}
	const lost = 1 // not the one that has the lease
	d.mem.Forget(lost)
	must(t, d.w.Close())
	d.w = nil
	d.newWorker() // on a new connection, which asks who the server is
	buf := make([]byte, kvstore.BlockSize)
	for n := int64(half); n < blocks && v.FlushFails() == nil; n++ {
		_ = d.do(Request{Kind: Read, Vol: v, Off: n * kvstore.BlockSize, Data: buf})
	}
	if v.FlushFails() == nil {
		t.Fatal("no read has found it")
	}
	healthy := uint64(0)
	for n := range uint64(half) {
		if d.pool.Server(kvstore.Key{Layer: v.layer, Number: n}) != lost {
			healthy++
		}
	}
	before := d.wb.Stats()
	if before.Dirty != half*kvstore.BlockSize || healthy == 0 {
		t.Fatalf("%d bytes are dirty, %d blocks of them elsewhere", before.Dirty, healthy)
	}
	v.fence.Load().Open(kvstore.Boottime() - 1) // until the lease is renewed
	if err := v.Close(ctx); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("close: %v", err)
	}
	if n := d.wb.Stats().Stored - before.Stored; n < healthy {
		t.Errorf("%d blocks were stored of %d whose server was left", n, healthy)
	}
}

// The server that was emptied is the one that has the lease: nothing can renew it, and
// the last close ends.
func TestDeferredRestWithoutLease(t *testing.T) {
	const size = 64 * kvstore.BlockSize
	d := newDeferRig(t, mem.Config{Servers: 2}, writeback.Config{MaxDirty: 4 << 20, MaxAge: time.Hour})
	d.create("v", size)
	v := d.open("v")
	d.write(v, 0, pattern(size, 1))
	d.flush(v)
	d.write(v, 0, pattern(size, 2))
	if d.deferred() == 0 {
		t.Fatal("nothing is deferred")
	}
	d.mem.Forget(0)
	d.mem.Forget(1)
	v.fence.Load().Open(kvstore.Boottime() - 1)
	if err := v.Close(ctx); !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("close: %v", err)
	}
}

// Once a read has found that a server was emptied, who overwrites a block of it is told
// at once, not by the next flush.
func TestDeferredAfterLossWasRead(t *testing.T) {
	const blocks = 256
	d := newDeferRig(t, mem.Config{Servers: 2}, writeback.Config{MaxDirty: 4 << 20, MaxAge: time.Hour})
	d.create("v", blocks*kvstore.BlockSize)
	v := d.open("v")
	d.write(v, 0, pattern(blocks*kvstore.BlockSize, 1))
	d.flush(v)
	d.mem.Forget(1)
	must(t, d.w.Close())
	d.w = nil
	d.newWorker() // on a new connection, which asks who the server is
	buf := make([]byte, kvstore.BlockSize)
	lost := int64(0)
	for ; lost < blocks; lost++ {
		if err := d.do(Request{Kind: Read, Vol: v, Off: lost * kvstore.BlockSize, Data: buf}); err != nil {
			break
		}
	}
	if v.FlushFails() == nil {
		t.Fatalf("no read of %d blocks has found it", lost)
	}
	before := d.deferred()
	err := d.do(Request{Kind: Write, Vol: v, Off: lost * kvstore.BlockSize, Data: pattern(kvstore.BlockSize, 2)})
	if !errors.Is(err, kvstore.ErrServerLost) {
		t.Errorf("an overwrite on the server: %v", err)
	}
	_ = d.do(Request{Kind: Write, Vol: v, Data: pattern(blocks*kvstore.BlockSize, 3)})
	if n := d.deferred() - before; n != 0 {
		t.Errorf("%d blocks are deferred though no flush can succeed", n)
	}
}

// discardAndFlush discards the first block of a volume, with a worker of its own, and
// flushes that.
func (d *deferRig) discardAndFlush(v *Volume) {
	d.t.Helper()
	other, err := d.set.Worker(ctx)
	must(d.t, err)
	reqs := []*Request{{Kind: Discard, Vol: v, N: kvstore.BlockSize}}
	other.Do(ctx, reqs)
	must(d.t, reqs[0].Err)
	reqs[0].Kind = Flush
	other.Do(ctx, reqs)
	must(d.t, reqs[0].Err)
	must(d.t, other.Close())
}

// discardStays: the first block is what was written last, and after a crash anything but
// what it was before the discard.
func (d *deferRig) discardStays(v *Volume, old, fresh []byte) {
	d.t.Helper()
	if got := d.read(v, 0, kvstore.BlockSize); !bytes.Equal(got, fresh) {
		d.t.Errorf("read: %s", firstDiff(got, fresh))
	}
	d.crash()
	v = d.open("v")
	if got := d.read(v, 0, kvstore.BlockSize); bytes.Equal(got, old) {
		d.t.Error("the discard, which was flushed, is undone: the block is what it was before it")
	}
}
