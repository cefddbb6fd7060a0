package mem

import (
	"sync"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// shards is the number of locks per server: many more than the workers of a big
// machine, so that two of them rarely meet.
const shards = 256

// server is one virtual server.
type server struct {
	name     string
	capacity int64 // blocks; 0: unlimited
	reserve  bool

	shard   [shards]shard
	blocks  atomic.Int64  // entries in all shards
	version atomic.Uint64 // last version given, to blocks and records

	mu      sync.Mutex // guards records, layers
	records map[string]record
	layers  map[kvstore.LayerID]struct{}
}

// shard is a part of a server's blocks.
type shard struct {
	mu      sync.Mutex // guards entries
	entries map[kvstore.Key]entry
	_       [48]byte // keeps two locks off one cache line
}

// entry is a stored block. data is apart from the rest so that it fills an
// allocation of exactly one block.
type entry struct {
	data    *[kvstore.BlockSize]byte
	crc     uint32
	version uint64
}

type record struct {
	value   []byte
	version uint64
}

func newServer(name string, cfg Config) *server {
	sv := &server{
		name:     name,
		capacity: int64(cfg.CapacityBlocks),
		reserve:  cfg.Reserve,
		records:  map[string]record{},
		layers:   map[kvstore.LayerID]struct{}{},
	}
	for i := range sv.shard {
		sv.shard[i].entries = map[kvstore.Key]entry{}
	}
	return sv
}

// of returns the shard of a key. The factor is 2^64 divided by the golden ratio,
// which spreads neighbours.
func (sv *server) of(k kvstore.Key) *shard {
	h := (k.Number ^ uint64(k.Layer)<<32 ^ uint64(k.Kind)<<56) * 0x9E3779B97F4A7C15
	return &sv.shard[h>>56%shards]
}

// read copies a block into op.Data and checks it.
func (sv *server) read(op *kvstore.Op) error {
	sh := sv.of(op.Key)
	sh.mu.Lock()
	e, ok := sh.entries[op.Key]
	if ok {
		copy(op.Data, e.data[:])
	}
	sh.mu.Unlock()
	if !ok {
		return kvstore.ErrAbsent
	}
	if kvstore.Checksum(op.Seed, op.Key, op.Data) != e.crc {
		return &kvstore.OpError{Op: "read", Server: sv.name, Key: op.Key,
			Err: &kvstore.CorruptError{Length: kvstore.BlockSize, Sum: e.crc, Mask: ^uint32(0)}}
	}
	if op.Versioned {
		op.Version = e.version
	}
	return nil
}

// write stores op.Data if the expectation holds and there is room.
func (sv *server) write(op *kvstore.Op) error {
	crc := kvstore.Checksum(op.Seed, op.Key, op.Data)
	sh := sv.of(op.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e, ok := sh.entries[op.Key]
	switch op.Expect {
	case kvstore.Present:
		if !ok {
			return kvstore.ErrAbsent
		}
	case kvstore.Absent:
		if ok {
			return kvstore.ErrExists
		}
	case kvstore.Same:
		if !ok {
			return kvstore.ErrAbsent
		}
		if e.version != op.Version {
			return kvstore.ErrConflict
		}
	}
	if !sv.room(op, ok) {
		return kvstore.ErrFull
	}
	if !ok {
		e.data = new([kvstore.BlockSize]byte)
	}
	copy(e.data[:], op.Data)
	e.crc = crc
	e.version = sv.version.Add(1)
	sh.entries[op.Key] = e
	return nil
}

// room says whether a write may be stored, and counts it if it is a new block.
func (sv *server) room(op *kvstore.Op, overwrite bool) bool {
	reserved := sv.reserve && (overwrite || op.Vital || op.Key.Kind != kvstore.KindBlock)
	if overwrite {
		return reserved || sv.capacity == 0 || sv.blocks.Load() < sv.capacity
	}
	if n := sv.blocks.Add(1); n <= sv.capacity || sv.capacity == 0 || reserved {
		return true
	}
	sv.blocks.Add(-1)
	return false
}

// discard removes a block; one that is absent is removed already.
func (sv *server) discard(k kvstore.Key) bool {
	sh := sv.of(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.entries[k]; !ok {
		return false
	}
	delete(sh.entries, k)
	sv.blocks.Add(-1)
	return true
}

// edit changes an entry in place, for the hooks: false if there is none.
func (sv *server) edit(k kvstore.Key, f func(*entry)) bool {
	sh := sv.of(k)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e, ok := sh.entries[k]
	if ok {
		f(&e)
		sh.entries[k] = e
	}
	return ok
}

// forget empties the server, as flush_all or a restart does. Versions begin at 1
// again, as after a cold start.
func (sv *server) forget() {
	for i := range sv.shard {
		sh := &sv.shard[i]
		sh.mu.Lock()
		sv.blocks.Add(-int64(len(sh.entries)))
		clear(sh.entries)
		sh.mu.Unlock()
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	clear(sv.records)
	clear(sv.layers)
	sv.version.Store(0)
}

func (sv *server) claimed(layer kvstore.LayerID) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	_, ok := sv.layers[layer]
	return ok
}

func (sv *server) claim(layer kvstore.LayerID) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.layers[layer] = struct{}{}
}
