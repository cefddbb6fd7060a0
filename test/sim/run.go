package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// disk is one process with one open volume.
type disk struct {
	t    *testing.T
	st   stacked
	pool *pool.Pool
	set  *volume.Set
	v    *volume.Volume
}

const volumeName = "v"

// openDisk creates and opens a volume of so many blocks. dir holds the local state.
func openDisk(t *testing.T, st stacked, dir string, blocks int64) *disk {
	t.Helper()
	d, err := startDisk(t, st, dir, blocks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

// startDisk starts a process on a store, and opens the volume, which it creates first
// unless it is to have no blocks.
func startDisk(t *testing.T, st stacked, dir string, blocks int64) (*disk, error) {
	p, err := pool.Open(t.Context(), st, pool.Options{URL: "sim:", StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run")})
	if err != nil {
		return nil, err
	}
	d := &disk{t: t, st: st, pool: p, set: volume.New(p, st, volume.Options{
		RuntimeDir: filepath.Join(dir, "volumes"), Lease: pool.LeaseOptions{TTL: time.Hour, Wait: -1},
		Opened: st.opened, Closed: st.closed,
	})}
	if blocks > 0 {
		err = d.set.Create(t.Context(), volumeName, blocks*kvstore.BlockSize)
	}
	if err == nil {
		d.v, err = d.set.Open(t.Context(), volumeName, true)
	}
	if err != nil {
		_ = p.Close()
	}
	return d, err
}

// close ends the process in order.
func (d *disk) close() {
	if err := d.set.Close(context.Background()); err != nil {
		d.t.Errorf("closing: %v", err)
	}
	if err := d.pool.Close(); err != nil {
		d.t.Error(err)
	}
	if err := d.st.Close(); err != nil {
		d.t.Error(err)
	}
}

// openSimulated opens a memcached store in a world. dir is where it leaves word of its
// connections for a successor; empty: nowhere.
func openSimulated(t *testing.T, w *World, n memcached.Network, connections int, dir string) kvstore.Store {
	t.Helper()
	st, err := memcached.Open(t.Context(), memcached.Config{Servers: w.Addrs(), Connections: connections, Network: n, TraceDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// stacked is a store with what stands on it, and what that is told of volumes.
type stacked struct {
	kvstore.Store
	opened, closed func(kvstore.LayerID)
}

// stack puts write-back and a cache on a store, as a mount does; of no bytes: none.
func stack(t *testing.T, st kvstore.Store, wb writeback.Config, cc cache.Config) stacked {
	t.Helper()
	s := stacked{Store: st, opened: func(kvstore.LayerID) {}}
	if wb.MaxDirty > 0 {
		w, err := writeback.Wrap(s.Store, wb)
		if err != nil {
			t.Fatal(err)
		}
		s = stacked{w, w.Opened, w.Closed}
	}
	if cc.Size > 0 {
		c, err := cache.Wrap(s.Store, cc)
		if err != nil {
			t.Fatal(err)
		}
		below := s.opened
		s.Store, s.opened = c, func(l kvstore.LayerID) { below(l); c.Opened(l) }
	}
	return s
}

// sectors of a block that are written alone.
const (
	sectorSize = 512
	sectors    = kvstore.BlockSize / sectorSize
)

// content is what a block holds: the number of the write that each sector is of.
type content [sectors]uint32

func fill(b []byte, id uint32) {
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = byte(id), byte(id>>8), byte(id>>16), byte(id>>24)
	}
}

// contentOf reads a block; ok is false if a sector is not of one write.
func contentOf(b []byte) (c content, ok bool) {
	for i := range c {
		s := b[i*sectorSize : (i+1)*sectorSize]
		c[i] = uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
		want := make([]byte, sectorSize)
		if fill(want, c[i]); string(want) != string(s) {
			return c, false
		}
	}
	return c, true
}

// Kinds of operations in a history.
const (
	opRead = iota
	opWrite
	opSector
	opDiscard
	opFlush   // of all blocks
	opSurvive // the first read by a successor
)

// operation is one operation of a history on one block.
type operation struct {
	client       int
	kind         int
	block        int64
	sector       int
	id           uint32  // written
	saw          content // read
	called, done int64   // order of all events
	echo         bool    // see model
	maybe        bool    // under way when its process was killed
}

// Config of a run.
type Config struct {
	Seed                          uint64
	Plan                          Plan
	Servers, Connections, Clients int
	Operations                    int   // per client
	Cache                         int64 // bytes; 0: none
	// WriteBack is how writes are deferred; of no bytes: not at all.
	WriteBack writeback.Config
}

func (c Config) String() string {
	return fmt.Sprintf("seed %d, plan %s, %d servers, %d connections, %d clients, %d operations each, a cache of %d bytes, %d bytes dirty for %v",
		c.Seed, c.Plan.Name, c.Servers, c.Connections, c.Clients, c.Operations, c.Cache, c.WriteBack.MaxDirty, c.WriteBack.MaxAge)
}

// blocks that a run works on: neighbours, and others that are on other servers and
// on another page of the map.
var blocks = []int64{0, 1, 40, 33000}

// recording is a history in the making.
type recording struct {
	t   *testing.T
	c   Config
	w   *World
	d   *disk
	ids atomic.Int64 // of writes

	order atomic.Int64 // of events
	mu    sync.Mutex
	all   []operation // guarded by mu
	dead  bool        // guarded by mu: the process was killed, so nothing is answered any more
	// left is how many operations are answered until over is closed; guarded by mu.
	left int
	over chan struct{}
}

// history runs clients against a volume in a world and returns what they saw. It
// must be called in a bubble.
func history(t *testing.T, c Config, w *World) []operation {
	st := stack(t, openSimulated(t, w, w, c.Connections, ""), c.WriteBack, cache.Config{Size: c.Cache})
	r := &recording{t: t, c: c, w: w, d: openDisk(t, st, t.TempDir(), volumeBlocks)}
	w.Begin()
	r.clients(t.Context(), 0)
	w.End()
	// Whatever is still to come out of an old connection comes now, and must not matter.
	time.Sleep(time.Minute)
	r.readAll(opRead)
	return r.all
}

// volumeBlocks is the size of the volume: a little more than the last block needs.
const volumeBlocks = 34000

// clients runs all clients to their end; life tells their choices from those of another
// process.
func (r *recording) clients(ctx context.Context, life int) {
	var wg sync.WaitGroup
	for client := range r.c.Clients {
		worker, err := r.d.set.Worker(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		wg.Go(func() {
			defer worker.Close()
			r.client(ctx, client, life, worker)
		})
	}
	wg.Wait()
}

// readAll reads each block, one after the other.
func (r *recording) readAll(kind int) {
	worker, err := r.d.set.Worker(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	defer worker.Close()
	for _, block := range blocks {
		r.do(r.t.Context(), worker, []operation{{client: r.c.Clients, kind: kind, block: block}}, false)
	}
}

// client does its share of operations, at its own pace.
func (r *recording) client(ctx context.Context, client, life int, worker *volume.Worker) {
	rng := rand.New(rand.NewPCG(r.c.Seed, uint64(100+client+1000*life)))
	for range r.c.Operations {
		time.Sleep(time.Duration(1 + rng.Int64N(2_000_000)))
		ops := choose(rng, client, &r.ids)
		if !r.do(ctx, worker, ops, rng.IntN(12) == 0) {
			return
		}
	}
}

// do does operations in one batch, and a flush after it. False: no more.
func (r *recording) do(ctx context.Context, worker *volume.Worker, ops []operation, flush bool) bool {
	reqs := make([]*volume.Request, len(ops))
	for i := range ops {
		reqs[i] = ops[i].request(r.d.v)
		ops[i].called = r.order.Add(1)
	}
	if flush {
		reqs = append(reqs, &volume.Request{Kind: volume.Flush, Vol: r.d.v})
		// What it covers is what was answered before it was asked for: it counts as
		// done at that moment, whenever it is answered.
		ops = append(ops, operation{client: ops[0].client, kind: opFlush, block: -1, called: r.order.Add(1), done: r.order.Add(1)})
	}
	worker.Do(ctx, reqs)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		r.cut(ops)
		return false
	}
	for i, q := range reqs {
		if q.Err != nil {
			r.t.Errorf("%v: request %d at %d: %v", r.c, q.Kind, q.Off, q.Err)
			return false
		}
		if ops[i].finish(r.t, q, &r.order); r.w.log != nil {
			r.w.log(fmt.Sprintf("%d done: %v", time.Since(r.w.began), ops[i]))
		}
	}
	r.all = append(r.all, ops...)
	if r.left -= len(ops); r.left <= 0 && r.over != nil {
		close(r.over)
		r.over = nil
	}
	return true
}

// choose makes one to three operations on different blocks, for one batch.
func choose(rng *rand.Rand, client int, ids *atomic.Int64) (ops []operation) {
	first := rng.IntN(len(blocks))
	for i := range 1 + rng.IntN(3) {
		o := operation{client: client, block: blocks[(first+i)%len(blocks)], kind: opRead}
		switch k := rng.IntN(20); {
		case k < 7:
			o.kind, o.id = opWrite, uint32(ids.Add(1))
		case k < 10:
			o.kind, o.id, o.sector = opSector, uint32(ids.Add(1)), rng.IntN(sectors)
		case k < 11:
			o.kind = opDiscard
		}
		ops = append(ops, o)
	}
	return ops
}

// String is for the log.
func (o operation) String() string {
	what := [...]string{"read", "write", "write sector", "discard", "flush", "survives"}[o.kind]
	if o.maybe {
		what = "under way: " + what
	}
	switch o.kind {
	case opRead, opSurvive:
		what += fmt.Sprint(" ", o.saw)
	case opSector:
		what += fmt.Sprintf(" %d: %d", o.sector, o.id)
	case opWrite:
		what += fmt.Sprintf(" %d", o.id)
	}
	return fmt.Sprintf("client %d, block %d, events %d to %d: %s", o.client, o.block, o.called, o.done, what)
}

func (o *operation) request(v *volume.Volume) *volume.Request {
	r := &volume.Request{Vol: v, Off: o.block * kvstore.BlockSize}
	switch o.kind {
	case opRead, opSurvive:
		r.Kind, r.Data = volume.Read, make([]byte, kvstore.BlockSize)
	case opWrite:
		r.Kind, r.Data = volume.Write, make([]byte, kvstore.BlockSize)
		fill(r.Data, o.id)
	case opSector:
		r.Kind, r.Data = volume.Write, make([]byte, sectorSize)
		r.Off += int64(o.sector) * sectorSize
		fill(r.Data, o.id)
	case opDiscard:
		r.Kind, r.N = volume.Discard, kvstore.BlockSize
	}
	return r
}

func (o *operation) finish(t *testing.T, r *volume.Request, order *atomic.Int64) {
	if o.done == 0 {
		o.done = order.Add(1)
	}
	if o.kind == opRead || o.kind == opSurvive {
		var ok bool
		if o.saw, ok = contentOf(r.Data); !ok {
			t.Errorf("block %d: a sector is torn", o.block)
		}
	}
}
