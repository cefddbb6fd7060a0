// Package leasetest is the conformance suite of leases on a store: several machines
// that share nothing but its servers take a volume's lease for writing, and share it for
// reading. Package pool has the rules, and tests each of them on a store in memory; here
// the records go through a store's own compare-and-swap.
//
//	func TestLeases(t *testing.T) {
//		leasetest.Run(t, func(t testing.TB) func() kvstore.Store {
//			server := start(t)
//			return func() kvstore.Store { return open(t, server) }
//		})
//	}
//
// No test asks that something happens in time: a lease that ran out on a busy machine is
// as good as one that was cut.
package leasetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// ttl of the leases here: long enough that a busy machine renews most of them in time.
const ttl = 500 * time.Millisecond

// Opener is called once per test. It returns a function that opens a store as one more
// machine does, always on the same servers, which other tests may share; the store is closed
// through t.Cleanup. One that a single process can open is the same for all.
type Opener func(t testing.TB) (machine func() kvstore.Store)

// Run runs the suite.
func Run(t *testing.T, open Opener) {
	for name, f := range map[string]func(*world){
		"OneWriter":          (*world).oneWriter,
		"ReadersShare":       (*world).readersShare,
		"Upgrade":            (*world).upgrade,
		"DeadHolders":        (*world).deadHolders,
		"OvertakenReader":    (*world).overtakenReader,
		"LateReader":         (*world).lateReader,
		"ReadersOrOneWriter": (*world).readersOrOneWriter,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			f(newWorld(t, open(t)))
		})
	}
}

// world is one test's pool, with a volume named v.
type world struct {
	t       *testing.T
	machine func() kvstore.Store
	name    string // of the pool
}

func newWorld(t *testing.T, machine func() kvstore.Store) *world {
	w := &world{t: t, machine: machine, name: fmt.Sprintf("leases-%016x", rand.Uint64())}
	p := w.host().pool
	if _, err := p.CreateVolume(t.Context(), "v", 1<<20, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Update(t.Context(), "v", func(v *pool.Volume) error { v.State = pool.Ready; return nil }); err != nil {
		t.Fatal(err)
	}
	return w
}

// host is a machine: it can be cut off from the records.
type host struct {
	kvstore.Store
	w    *world
	pool *pool.Pool
	cut  atomic.Bool
}

func (w *world) host() *host {
	w.t.Helper()
	h := &host{Store: w.machine(), w: w}
	p, err := pool.Open(w.t.Context(), h, pool.Options{URL: "test:", Name: w.name, StateDir: w.t.TempDir(), RuntimeDir: w.t.TempDir()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.Close() })
	h.pool = p
	return h
}

// Control implements kvstore.Store.
func (h *host) Control() kvstore.Control { return control{h.Store.Control(), h} }

type control struct {
	kvstore.Control
	host *host
}

func (c control) call(f func() error) error {
	if c.host.cut.Load() {
		return kvstore.ErrUnreachable
	}
	return f()
}

// Get implements kvstore.Control.
func (c control) Get(ctx context.Context, n int, name string) (rec kvstore.Record, err error) {
	err = c.call(func() (err error) { rec, err = c.Control.Get(ctx, n, name); return err })
	return rec, err
}

// Add implements kvstore.Control.
func (c control) Add(ctx context.Context, n int, name string, value []byte) error {
	return c.call(func() error { return c.Control.Add(ctx, n, name, value) })
}

// Swap implements kvstore.Control.
func (c control) Swap(ctx context.Context, n int, name string, old kvstore.Record, value []byte) error {
	return c.call(func() error { return c.Control.Swap(ctx, n, name, old, value) })
}

// Delete implements kvstore.Control.
func (c control) Delete(ctx context.Context, n int, name string) error {
	return c.call(func() error { return c.Control.Delete(ctx, n, name) })
}

// options are those of all leases here.
func options(wait time.Duration) pool.LeaseOptions { return pool.LeaseOptions{TTL: ttl, Wait: wait} }

// patient waits as long as it takes until a lease that nobody renews has run out.
const patient = time.Minute

func (h *host) write(opt pool.LeaseOptions) *pool.Lease {
	h.w.t.Helper()
	l, err := h.pool.Acquire(h.w.t.Context(), "v", opt)
	if err != nil {
		h.w.t.Fatal(err)
	}
	return l
}

func (h *host) read() *pool.Lease {
	h.w.t.Helper()
	return h.share(options(patient))
}

// readLong reads with a share that does not run out: where two of them shall be there at
// once neither may find the other one silent, however slow the machine is.
func (h *host) readLong() *pool.Lease {
	h.w.t.Helper()
	return h.share(pool.LeaseOptions{TTL: time.Minute})
}

func (h *host) share(opt pool.LeaseOptions) *pool.Lease {
	h.w.t.Helper()
	l, err := h.pool.AcquireShared(h.w.t.Context(), "v", opt)
	if err != nil {
		h.w.t.Fatal(err)
	}
	return l
}

// refused fails the test unless nobody may write, or read, from here now.
func (h *host) refused(reading bool, because string) {
	h.w.t.Helper()
	take := h.pool.Acquire
	if reading {
		take = h.pool.AcquireShared
	}
	_, err := take(h.w.t.Context(), "v", options(-1))
	if !errors.Is(err, pool.ErrHeld) || !strings.Contains(err.Error(), because) {
		h.w.t.Fatalf("reading %v: %v, want that it is held, %q", reading, err, because)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// eventually polls; the bound is only there so that a failure ends.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patient); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("never: " + what)
		}
	}
}

// oneWriter: nobody else writes or reads while one writes; the next one has a later
// generation.
func (w *world) oneWriter() {
	p, q := w.host(), w.host()
	l := p.write(options(-1))
	q.refused(false, "")
	q.refused(true, "")
	w.must(l.Wait(w.t.Context()))
	w.must(l.Release(w.t.Context()))
	next := q.write(options(-1))
	if next.Generation() != l.Generation()+1 || next.ID() == l.ID() {
		w.t.Errorf("generations %d and %d", l.Generation(), next.Generation())
	}
	w.must(next.Release(w.t.Context()))
}

// readersShare: readers of several machines at once, no writer beside them.
func (w *world) readersShare() {
	ctx := w.t.Context()
	p, q, other := w.host(), w.host(), w.host()
	a, b := p.readLong(), q.readLong()
	for _, l := range []*pool.Lease{a, b} {
		w.must(l.Wait(ctx))
	}
	writer, readers, err := other.pool.Holders(ctx, "v")
	w.must(err)
	if writer != nil || len(readers) != 2 || readers[0].ID != a.ID() || readers[1].ID != b.ID() || readers[0].SameHost {
		w.t.Fatalf("holders: %+v, %+v", writer, readers)
	}
	other.refused(false, "open for reading on")
	w.must(a.Release(ctx))
	if a.Fence().Passes() {
		w.t.Error("a share passes after its release")
	}
	other.refused(false, "open for reading on")
	w.must(b.Release(ctx))
	l := other.write(options(-1))
	p.refused(true, "")
	w.must(l.Release(ctx))
	c := p.read()
	if c.Generation() != l.Generation() {
		w.t.Errorf("a reader of generation %d after a writer of %d", c.Generation(), l.Generation())
	}
	w.must(c.Release(ctx))
}

// upgrade: who reads goes on to write once nobody else reads.
func (w *world) upgrade() {
	ctx := w.t.Context()
	p, q := w.host(), w.host()
	mine, other := p.readLong(), q.readLong()
	opt := options(-1)
	opt.Upgrade = mine
	if _, err := p.pool.Acquire(ctx, "v", opt); !errors.Is(err, pool.ErrHeld) {
		w.t.Fatalf("beside another reader: %v", err)
	}
	w.must(mine.Wait(ctx))
	w.must(other.Release(ctx))
	l := p.write(opt)
	mine.Abandon()
	q.refused(true, "")
	w.must(l.Release(ctx))
}

// deadHolders: a writer waits for one that is gone as long as its lease lasts, whether
// that wrote or read.
func (w *world) deadHolders() {
	for _, take := range []func(*host) *pool.Lease{
		func(h *host) *pool.Lease { return h.write(options(patient)) },
		func(h *host) *pool.Lease { return h.read() },
	} {
		p, q := w.host(), w.host()
		dead := take(p)
		began := kvstore.Boottime()
		_ = p.pool.Close() // as a crash: the record stays
		if dead.Fence().Passes() {
			w.t.Error("it passes after its pool was closed")
		}
		q.refused(false, "")
		l := q.write(options(patient))
		if waited := time.Duration(kvstore.Boottime() - began); waited < ttl {
			w.t.Errorf("taken after %v, before it had run out", waited)
		}
		w.must(l.Release(w.t.Context()))
	}
}

// overtakenReader: a reader that is cut off trusts nothing any more when its share has
// run out, and after somebody wrote it never does again.
func (w *world) overtakenReader() {
	ctx := w.t.Context()
	p, q := w.host(), w.host()
	late := p.read()
	p.cut.Store(true)
	l := q.write(options(patient))
	if late.Fence().Passes() {
		w.t.Fatal("a reader reads beside a writer")
	}
	w.must(l.Release(ctx))
	p.cut.Store(false)
	if err := late.Wait(ctx); !errors.Is(err, pool.ErrHeld) || late.Fence().Passes() {
		w.t.Errorf("a reader that was overtaken: %v, passes: %v", err, late.Fence().Passes())
	}
}

// lateReader: a reader that was cut off while nobody wrote goes on, also if another one
// dropped its entry meanwhile.
func (w *world) lateReader() {
	ctx := w.t.Context()
	p, q := w.host(), w.host()
	late, other := p.read(), q.read()
	p.cut.Store(true)
	w.eventually("the fence closes by itself", func() bool { return !late.Fence().Passes() })
	w.eventually("the other reader drops the entry", func() bool {
		_, readers, err := q.pool.Holders(ctx, "v")
		return err == nil && len(readers) == 1 && readers[0].ID == other.ID()
	})
	p.cut.Store(false)
	w.must(late.Wait(ctx))
	// On a slow machine each of them may drop the other one's entry once more.
	w.eventually("both share it", func() bool {
		_, readers, err := q.pool.Holders(ctx, "v")
		return err == nil && len(readers) == 2
	})
	w.must(errors.Join(late.Release(ctx), other.Release(ctx)))
}

// readersOrOneWriter: machines that read and machines that write fight for the volume,
// and some are cut off. When a writer's fence passes, all others are closed.
func (w *world) readersOrOneWriter() {
	const machines = 4 // the even ones write
	var (
		wg          sync.WaitGroup
		read, wrote atomic.Int32
		fences      [machines]atomic.Pointer[kvstore.Fence]
	)
	ctx, stop := context.WithTimeout(w.t.Context(), 1500*time.Millisecond)
	defer stop()
	for i := range machines {
		h, writes := w.host(), i%2 == 0
		wg.Go(func() {
			take, count := h.pool.AcquireShared, &read
			if writes {
				take, count = h.pool.Acquire, &wrote
			}
			for ctx.Err() == nil {
				l, err := take(ctx, "v", options(time.Second))
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				count.Add(1)
				fences[i].Store(l.Fence())
				for j := range fences {
					// Ours is asked last: if it passes then, it passed also when the other
					// one was asked.
					other := fences[j].Load()
					if j != i && (writes || j%2 == 0) && other != nil && other.Passes() && l.Fence().Passes() {
						w.t.Errorf("machines %d and %d at once", i, j)
					}
				}
				if rand.N(4) == 0 {
					h.cut.Store(true)
					for l.Fence().Passes() {
						time.Sleep(time.Millisecond)
					}
					h.cut.Store(false)
				}
				for l.Release(context.WithoutCancel(ctx)) != nil {
				}
			}
		})
	}
	wg.Wait()
	w.t.Logf("%d turns of readers, %d of writers", read.Load(), wrote.Load())
	if read.Load()+wrote.Load() == 0 {
		w.t.Error("nobody had a turn")
	}
}
