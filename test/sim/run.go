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
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// disk is one open volume on a store.
type disk struct {
	t   *testing.T
	st  kvstore.Store
	set *volume.Set
	v   *volume.Volume
}

const volumeName = "v"

// openDisk creates and opens a volume of so many blocks. dir holds the local state.
func openDisk(t *testing.T, st kvstore.Store, dir string, blocks int64) *disk {
	t.Helper()
	ctx := t.Context()
	p, err := pool.Open(ctx, st, pool.Options{URL: "sim:", StateDir: filepath.Join(dir, "state"), RuntimeDir: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{t: t, st: st}
	opt := volume.Options{RuntimeDir: filepath.Join(dir, "volumes"), Lease: pool.LeaseOptions{TTL: time.Hour, Wait: -1}}
	if c, ok := st.(*cache.Store); ok {
		opt.Opened = c.Opened
	}
	d.set = volume.New(p, st, opt)
	if err := d.set.Create(ctx, volumeName, blocks*kvstore.BlockSize); err != nil {
		t.Fatal(err)
	}
	if d.v, err = d.set.Open(ctx, volumeName, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if err := d.set.Close(ctx); err != nil {
			t.Errorf("closing: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// openSimulated opens a memcached store in a world.
func openSimulated(t *testing.T, w *World, connections int) kvstore.Store {
	t.Helper()
	st, err := memcached.Open(t.Context(), memcached.Config{Servers: w.Addrs(), Connections: connections, Network: w})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// withCache puts a cache on a store; one of no bytes is none.
func withCache(t *testing.T, st kvstore.Store, cfg cache.Config) kvstore.Store {
	t.Helper()
	if cfg.Size == 0 {
		return st
	}
	c, err := cache.Wrap(st, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
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
}

// Config of a run.
type Config struct {
	Seed                          uint64
	Plan                          Plan
	Servers, Connections, Clients int
	Operations                    int   // per client
	Cache                         int64 // bytes; 0: none
}

func (c Config) String() string {
	return fmt.Sprintf("seed %d, plan %s, %d servers, %d connections, %d clients, %d operations each, a cache of %d bytes",
		c.Seed, c.Plan.Name, c.Servers, c.Connections, c.Clients, c.Operations, c.Cache)
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
}

// history runs clients against a volume in a world and returns what they saw. It
// must be called in a bubble.
func history(t *testing.T, c Config, w *World) []operation {
	r := &recording{t: t, c: c, w: w, d: openDisk(t, withCache(t, openSimulated(t, w, c.Connections), cache.Config{Size: c.Cache}), t.TempDir(), 34000)}
	w.Begin()
	var wg sync.WaitGroup
	for client := range c.Clients {
		worker, err := r.d.set.Worker(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer worker.Close()
			r.client(client, worker)
		})
	}
	wg.Wait()
	w.End()
	// Whatever is still to come out of an old connection comes now, and must not matter.
	time.Sleep(time.Minute)
	worker, err := r.d.set.Worker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	for _, block := range blocks {
		r.do(worker, []operation{{client: c.Clients, kind: opRead, block: block}}, false)
	}
	return r.all
}

// client does its share of operations, at its own pace.
func (r *recording) client(client int, worker *volume.Worker) {
	rng := rand.New(rand.NewPCG(r.c.Seed, uint64(100+client)))
	for range r.c.Operations {
		time.Sleep(time.Duration(1 + rng.Int64N(2_000_000)))
		ops := choose(rng, client, &r.ids)
		if !r.do(worker, ops, rng.IntN(12) == 0) {
			return
		}
	}
}

// do does operations in one batch, and a flush after it.
func (r *recording) do(worker *volume.Worker, ops []operation, flush bool) bool {
	reqs := make([]*volume.Request, len(ops))
	for i := range ops {
		reqs[i] = ops[i].request(r.d.v)
		ops[i].called = r.order.Add(1)
	}
	if flush {
		reqs = append(reqs, &volume.Request{Kind: volume.Flush, Vol: r.d.v})
	}
	worker.Do(r.t.Context(), reqs)
	for i, q := range reqs {
		if q.Err != nil {
			r.t.Errorf("%v: request %d at %d: %v", r.c, q.Kind, q.Off, q.Err)
			return false
		}
		if i == len(ops) {
			break
		}
		if ops[i].finish(r.t, q, r.order.Add(1)); r.w.log != nil {
			r.w.log(fmt.Sprintf("%d done: %v", time.Since(r.w.began), ops[i]))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, ops...)
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
	what := [...]string{"read", "write", "write sector", "discard"}[o.kind]
	switch o.kind {
	case opRead:
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
	case opRead:
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

func (o *operation) finish(t *testing.T, r *volume.Request, at int64) {
	o.done = at
	if o.kind == opRead {
		var ok bool
		if o.saw, ok = contentOf(r.Data); !ok {
			t.Errorf("block %d: a sector is torn", o.block)
		}
	}
}
