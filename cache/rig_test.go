package cache_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

const layer = kvstore.LayerID(9)

// rig is a cache over a store in memory whose batches a test can hold.
type rig struct {
	t     *testing.T
	mem   *mem.Store
	under *under
	cache *cache.Store
	ch    kvstore.Channel
}

func newRig(t *testing.T, servers int, cfg cache.Config) *rig {
	t.Helper()
	r := &rig{t: t, mem: mem.New(mem.Config{Servers: servers})}
	r.under = &under{Store: r.mem}
	r.cache = wrap(t, r.under, cfg)
	place := storetest.Place(servers)
	place.Prove("cachetest:sentinel")
	for n := range servers {
		name, value := place.Sentinel(n)
		if err := r.mem.Control().Add(ctx, n, name, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.cache.Join(place); err != nil {
		t.Fatal(err)
	}
	if err := r.cache.CreateLayer(ctx, layer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.cache.Close(); err != nil && !errors.Is(err, kvstore.ErrClosed) {
			t.Error(err)
		}
	})
	r.ch = r.channel()
	return r
}

func (r *rig) channel() kvstore.Channel {
	r.t.Helper()
	ch, err := r.cache.Channel(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = ch.Close() })
	return ch
}

var ctx = context.Background()

// sector is how far apart a block's stamps are: the race detector makes more slow.
const sector = 512

func block(version uint64) []byte {
	b := make([]byte, kvstore.BlockSize)
	for i := 0; i < len(b); i += sector {
		binary.LittleEndian.PutUint64(b[i:], version+uint64(i)<<32)
	}
	return b
}

// version of a block; false if it is torn.
func version(b []byte) (uint64, bool) {
	v := binary.LittleEndian.Uint64(b)
	for i := sector; i < len(b); i += sector {
		if binary.LittleEndian.Uint64(b[i:]) != v+uint64(i)<<32 {
			return v, false
		}
	}
	return v, true
}

func key(n uint64) kvstore.Key { return kvstore.Key{Layer: layer, Number: n} }

func readOp(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Read, Key: key(n), Data: make([]byte, kvstore.BlockSize), Reader: 1}
}

func writeOp(n, version uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Key: key(n), Data: block(version)}
}

func (r *rig) write(n, version uint64) {
	r.t.Helper()
	op := writeOp(n, version)
	if r.ch.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
		r.t.Fatalf("write of block %d: %v", n, op.Err)
	}
}

// fill writes blocks 0 to span, each with its number as its version.
func (r *rig) fill(span uint64) {
	r.t.Helper()
	for n := uint64(0); n < span; n += 256 {
		var ops []*kvstore.Op
		for i := n; i < min(n+256, span); i++ {
			ops = append(ops, writeOp(i, i))
		}
		r.ch.Do(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				r.t.Fatal(op.Err)
			}
		}
	}
}

func (r *rig) read(n uint64) uint64 {
	r.t.Helper()
	op := readOp(n)
	if r.ch.Do(ctx, []*kvstore.Op{op}); op.Err != nil {
		r.t.Fatalf("read of block %d: %v", n, op.Err)
	}
	v, ok := version(op.Data)
	if !ok {
		r.t.Fatalf("block %d is torn", n)
	}
	return v
}

func (r *rig) holds(n, want uint64) {
	r.t.Helper()
	if got := r.read(n); got != want {
		r.t.Fatalf("block %d holds version %d, want %d", n, got, want)
	}
}

// cached reads a block and says whether memory answered.
func (r *rig) cached(n uint64) bool {
	r.t.Helper()
	before := r.cache.Stats().Hits
	r.read(n)
	return r.cache.Stats().Hits > before
}

// under is the store below the cache. Its after is called when a batch was
// executed and has not returned yet, its before when it was not executed yet; both
// may wait, by several goroutines at once.
type under struct {
	kvstore.Store
	mu            sync.Mutex
	before, after func(ops []*kvstore.Op)
	// silent: what is read ahead has no answer until its context ends.
	silent atomic.Bool
	slow   map[uint64]bool // set before use
	// fails: what is read ahead ends with an error, after before was called.
	fails atomic.Bool
	// opening: opening a channel panics.
	opening atomic.Bool
	rewinds atomic.Uint64
	// givesUp: writes are not executed before doLate, and end with an error at once.
	givesUp atomic.Bool
	late    []*kvstore.Op          // guarded by mu
	haunted atomic.Bool            // late is not empty
	closing atomic.Pointer[func()] // called when a channel is being closed
}

func (u *under) Rewinds() uint64 { return u.rewinds.Load() }

func (u *under) Haunted(kvstore.Key) bool { return u.haunted.Load() }

// giveUp leaves writes to a server that does not answer and may execute them later.
func (u *under) giveUp(ops []*kvstore.Op) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.haunted.Store(true)
	for _, op := range ops {
		late := *op
		late.Data = bytes.Clone(op.Data)
		u.late = append(u.late, &late)
		op.Err = kvstore.ErrTimeout
	}
}

// doLate executes what was given up.
func (u *under) doLate(t *testing.T) {
	t.Helper()
	ch, err := u.Store.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	ch.Do(ctx, u.late)
	for _, op := range u.late {
		if op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	u.late = nil
	u.haunted.Store(false)
}

func (u *under) set(before, after func(ops []*kvstore.Op)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.before, u.after = before, after
}

func (u *under) hooks() (before, after func(ops []*kvstore.Op)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.before, u.after
}

func (u *under) Channel(ctx context.Context) (kvstore.Channel, error) {
	if u.opening.Load() {
		panic("planted")
	}
	ch, err := u.Store.Channel(ctx)
	return &underChannel{Channel: ch, u: u}, err
}

type underChannel struct {
	kvstore.Channel
	u    *under
	left []*kvstore.Op
}

func (c *underChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	if c.u.silent.Load() && ops[0].Reader == 0 {
		<-ctx.Done()
		for _, op := range ops {
			op.Err = kvstore.ErrAborted
		}
		return
	}
	if c.u.givesUp.Load() && ops[0].Code == kvstore.Write {
		c.u.giveUp(ops)
		return
	}
	before, after := c.u.hooks()
	if before != nil {
		before(ops)
	}
	if c.u.fails.Load() && ops[0].Reader == 0 {
		for _, op := range ops {
			op.Err = kvstore.ErrUnreachable
		}
		return
	}
	c.Channel.Do(ctx, ops)
	if after != nil {
		after(ops)
	}
}

// Try leaves the operations on blocks of slow, whose server is silent.
func (c *underChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	if len(ops) == 0 {
		ops = slices.Clone(c.left)
	}
	c.left = c.left[:0]
	var now []*kvstore.Op
	for _, op := range ops {
		if c.u.slow[op.Key.Number] {
			op.Err = kvstore.ErrPending
			c.left = append(c.left, op)
		} else {
			now = append(now, op)
		}
	}
	if len(now) > 0 {
		c.Do(ctx, now)
	}
	return len(c.left) == 0
}

func (c *underChannel) Close() error {
	if f := c.u.closing.Load(); f != nil {
		(*f)()
	}
	return c.Channel.Close()
}

func (c *underChannel) Finish(ctx context.Context) { c.Do(ctx, c.left) }

// within fails the test if done is not closed in time.
func within(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s takes for ever", what)
	}
}

// in runs f on its own and returns what is closed when it is over.
func in(f func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return done
}
