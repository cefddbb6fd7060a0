package writeback

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	layerID = kvstore.LayerID(9)
	// never is an age that nothing reaches in a test.
	never = time.Hour
	// servers of a rig: even blocks are on the first one, as Place has it or not; ask
	// rig.on.
	servers = 2
)

var ctx = context.Background()

// rig is write-back over a store in memory whose batches a test can hold.
type rig struct {
	t     *testing.T
	mem   *mem.Store
	under *under
	store *Store
	place *storetest.Placement
	ch    kvstore.Channel
	fence kvstore.Fence
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{t: t, mem: mem.New(mem.Config{Servers: servers, Reserve: true})}
	r.under = &under{Store: r.mem}
	cfg.Log = t.Logf
	if cfg.MaxDirty == 0 {
		cfg.MaxDirty = 1 << 20
	}
	var err error
	r.store, err = Wrap(r.under, cfg)
	must(t, err)
	r.place = storetest.Place(servers)
	r.place.Prove("writebacktest:sentinel")
	for n := range servers {
		name, value := r.place.Sentinel(n)
		must(t, r.mem.Control().Add(ctx, n, name, value))
	}
	must(t, r.store.Join(r.place))
	must(t, r.store.CreateLayer(ctx, layerID))
	r.store.Opened(layerID)
	r.fence.OpenForEver()
	t.Cleanup(func() {
		if err := r.store.Close(); err != nil && !errors.Is(err, kvstore.ErrClosed) {
			t.Error(err)
		}
	})
	r.ch = r.channel()
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) channel() kvstore.Channel {
	r.t.Helper()
	ch, err := r.store.Channel(ctx)
	must(r.t, err)
	r.t.Cleanup(func() { _ = ch.Close() })
	return ch
}

// on returns a block of a server, the i-th.
func (r *rig) on(server, i int) uint64 {
	for n := uint64(0); ; n++ {
		if r.place.Server(key(n)) != server {
			continue
		}
		if i--; i < 0 {
			return n
		}
	}
}

func key(n uint64) kvstore.Key { return kvstore.Key{Layer: layerID, Number: n} }

func block(version uint64) []byte {
	b := make([]byte, kvstore.BlockSize)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], version)
	}
	return b
}

// version of a block; false if it is torn.
func version(b []byte) (uint64, bool) {
	v := binary.LittleEndian.Uint64(b)
	for i := 8; i < len(b); i += 8 {
		if binary.LittleEndian.Uint64(b[i:]) != v {
			return v, false
		}
	}
	return v, true
}

func (r *rig) overwrite(n, version uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Write, Expect: kvstore.Present, Deferrable: true, Fence: &r.fence, Key: key(n), Data: block(version)}
}

func readOp(n uint64) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Read, Key: key(n), Data: make([]byte, kvstore.BlockSize), Reader: 1}
}

func (r *rig) do(ops ...*kvstore.Op) {
	r.t.Helper()
	r.ch.Do(ctx, ops)
	for _, op := range ops {
		if op.Err != nil {
			r.t.Fatalf("%v of block %d: %v", op.Code, op.Key.Number, op.Err)
		}
	}
}

// fill makes blocks that exist, with version 1, and has writes deferred from now on.
func (r *rig) fill(blocks uint64) {
	r.t.Helper()
	for n := range blocks {
		r.do(&kvstore.Op{Code: kvstore.Write, Expect: kvstore.Absent, Key: key(n), Data: block(1)})
	}
	r.flush()
}

// write overwrites a block and says whether that was deferred.
func (r *rig) write(n, version uint64) (deferred bool) {
	r.t.Helper()
	op := r.overwrite(n, version)
	r.do(op)
	return op.Deferred
}

// deferred overwrites a block, which must be deferred.
func (r *rig) deferred(n, version uint64) {
	r.t.Helper()
	if !r.write(n, version) {
		r.t.Fatalf("the write of block %d was not deferred", n)
	}
}

func (r *rig) flush() {
	r.t.Helper()
	must(r.t, r.ch.Flush(ctx, layerID))
}

// holds checks what is read of a block.
func (r *rig) holds(n, want uint64) {
	r.t.Helper()
	op := readOp(n)
	r.do(op)
	if got, ok := version(op.Data); !ok || got != want {
		r.t.Fatalf("block %d reads as version %d, want %d", n, got, want)
	}
}

// stored returns the version that the store has of a block, 0: none.
func (r *rig) stored(n uint64) uint64 {
	r.t.Helper()
	ch, err := r.mem.Channel(ctx)
	must(r.t, err)
	defer ch.Close()
	op := readOp(n)
	if ch.Do(ctx, []*kvstore.Op{op}); errors.Is(op.Err, kvstore.ErrAbsent) {
		return 0
	}
	must(r.t, op.Err)
	v, ok := version(op.Data)
	if !ok {
		r.t.Fatalf("block %d is torn", n)
	}
	return v
}

func (r *rig) storeHas(n, want uint64) {
	r.t.Helper()
	if got := r.stored(n); got != want {
		r.t.Fatalf("the store has version %d of block %d, want %d", got, n, want)
	}
}

// under is the store below. Its hook is called before each batch and flush (ops nil)
// is handed on, and may wait, fail the batch by an error, or panic.
type under struct {
	kvstore.Store
	mu   sync.Mutex
	hook func(ctx context.Context, ops []*kvstore.Op) error
}

func (u *under) set(hook func(ctx context.Context, ops []*kvstore.Op) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hook = hook
}

func (u *under) Channel(ctx context.Context) (kvstore.Channel, error) {
	ch, err := u.Store.Channel(ctx)
	return &underChannel{Channel: ch, u: u}, err
}

type underChannel struct {
	kvstore.Channel
	u *under
}

func (c *underChannel) before(ctx context.Context, ops []*kvstore.Op) error {
	c.u.mu.Lock()
	hook := c.u.hook
	c.u.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, ops)
}

func (c *underChannel) Do(ctx context.Context, ops []*kvstore.Op) {
	if err := c.before(ctx, ops); err != nil {
		for _, op := range ops {
			op.Err = err
		}
		return
	}
	c.Channel.Do(ctx, ops)
}

func (c *underChannel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

func (c *underChannel) Flush(ctx context.Context, id kvstore.LayerID) error {
	if err := c.before(ctx, nil); err != nil {
		return err
	}
	return c.Channel.Flush(ctx, id)
}

// holding has every batch with a write wait. It returns where each says that it waits,
// and what lets all go on.
func (u *under) holding() (held chan struct{}, goOn func()) {
	held, gate := make(chan struct{}, 100), make(chan struct{})
	u.set(func(ctx context.Context, ops []*kvstore.Op) error {
		for _, op := range ops {
			if op.Code == kvstore.Write {
				held <- struct{}{}
				select {
				case <-gate:
					return nil
				case <-ctx.Done():
					return ended(ctx)
				}
			}
		}
		return nil
	})
	var once sync.Once
	return held, func() { once.Do(func() { u.set(nil); close(gate) }) }
}

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

// until waits for something that happens in the background.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not so after 30 s: %s", what)
		}
	}
}
