package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/file"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is one machine with one daemon on a store. restart gives it a new daemon.
type rig struct {
	t     testing.TB
	store *checkedStore
	cache *cache.Store // part of store; nil: none
	pool  *pool.Pool
	set   *Set
	w     *Worker

	runtime, state, dir string
}

var stores = []string{"mem", "mem3", "file", "cached"}

func newRig(t testing.TB, kind string) *rig {
	t.Helper()
	return newRigOn(t, kind, nil)
}

// newRigOn makes a rig on a given store.
func newRigOn(t testing.TB, kind string, st kvstore.Store) *rig {
	t.Helper()
	r := &rig{t: t, runtime: t.TempDir(), state: t.TempDir(), dir: t.TempDir()}
	switch kind {
	case "mem":
		r.store = checked(t, mem.New(mem.Config{}))
	case "mem3":
		r.store = checked(t, mem.New(mem.Config{Servers: 3}))
	case "file":
		r.openFile()
	case "cached": // more than its cache holds, and read ahead
		var err error
		r.cache, err = cache.Wrap(checked(t, mem.New(mem.Config{Servers: 3})), cache.Config{Size: 256 << 10, ReadAhead: 64 << 10})
		must(t, err)
		r.store = checked(t, r.cache)
	default:
		r.store = checked(t, st)
	}
	r.start()
	t.Cleanup(r.end)
	return r
}

func (r *rig) openFile() {
	st, err := file.Open(r.dir, file.Options{})
	must(r.t, err)
	r.store = checked(r.t, st)
}

func (r *rig) mem() *mem.Store { return r.store.Store.(*mem.Store) }

// start starts a daemon on what there is.
func (r *rig) start() {
	r.t.Helper()
	var err error
	r.pool, err = pool.Open(ctx, r.store, pool.Options{URL: "test:", StateDir: r.state, RuntimeDir: r.runtime})
	must(r.t, err)
	opt := Options{RuntimeDir: filepath.Join(r.runtime, "volumes"),
		Lease: pool.LeaseOptions{TTL: time.Minute, Wait: -1},
		Log:   func(f string, a ...any) { r.t.Logf(f, a...) }}
	if r.cache != nil {
		opt.Opened = r.cache.Opened
	}
	r.set = New(r.pool, r.store, opt)
	r.set.reapDelay = time.Hour // tests reap when they want to
	r.newWorker()
}

// newWorker makes the worker once the pool is formatted.
func (r *rig) newWorker() {
	if r.w == nil && r.pool.Formatted() {
		var err error
		r.w, err = r.set.Worker(ctx)
		must(r.t, err)
	}
}

func (r *rig) create(name string, size int64) {
	r.t.Helper()
	must(r.t, r.set.Create(ctx, name, size))
	r.newWorker()
}

func (r *rig) open(name string) *Volume {
	r.t.Helper()
	v, err := r.set.Open(ctx, name, true)
	must(r.t, err)
	return v
}

// crash drops the daemon as SIGKILL does: nothing is stored, the lock of the
// local state goes, its file stays.
func (r *rig) crash() {
	r.t.Helper()
	for _, v := range r.set.open {
		v.reaper.halt()
		if v.state != nil {
			v.state.unlock()
		}
	}
	if r.w != nil {
		must(r.t, r.w.Close())
		r.w = nil
	}
	must(r.t, r.pool.Close())
	if r.cache != nil {
		r.cache.Drop() // memory is gone with the process
	}
	r.start()
}

// loseState drops the local state, as a crash of the machine does.
func (r *rig) loseState() {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.runtime, "volumes", "*"))
	must(r.t, err)
	for _, n := range names {
		must(r.t, os.Remove(n))
	}
}

func (r *rig) end() {
	if r.w != nil {
		must(r.t, r.w.Close())
	}
	if err := r.set.Close(ctx); err != nil {
		r.t.Log("close:", err)
		for _, v := range r.set.open {
			v.reaper.halt()
		}
	}
	_ = r.pool.Close()
	must(r.t, r.store.Close())
}

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do runs one request.
func (r *rig) do(req Request) error {
	r.w.Do(ctx, []*Request{&req})
	return req.Err
}

func (r *rig) write(v *Volume, off int64, data []byte) {
	r.t.Helper()
	must(r.t, r.do(Request{Kind: Write, Vol: v, Off: off, Data: data}))
}

func (r *rig) read(v *Volume, off, n int64) []byte {
	r.t.Helper()
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xee
	}
	must(r.t, r.do(Request{Kind: Read, Vol: v, Off: off, Data: b}))
	return b
}

func (r *rig) flush(v *Volume) {
	r.t.Helper()
	must(r.t, r.do(Request{Kind: Flush, Vol: v}))
}

func (r *rig) reap(v *Volume) {
	r.t.Helper()
	must(r.t, r.set.withChannel(ctx, func(ch kvstore.Channel) error { return v.drain(ctx, ch) }))
}

// pattern returns n bytes that are never all zero.
func pattern(n int, seed byte) []byte { return fillPattern(make([]byte, n), seed) }

func fillPattern(b []byte, seed byte) []byte {
	for i := range b {
		b[i] = byte(i)*7 + byte(i>>8) + seed | 1
	}
	return b
}

func eachStore(t *testing.T, f func(t *testing.T, r *rig)) {
	for _, kind := range stores {
		t.Run(kind, func(t *testing.T) { f(t, newRig(t, kind)) })
	}
}

func firstDiff(a, b []byte) string {
	for i := range a {
		if a[i] != b[i] {
			return fmt.Sprintf("byte %d (block %d): %#x, want %#x", i, i/kvstore.BlockSize, a[i], b[i])
		}
	}
	return "same"
}
