package mem

import (
	"cmp"
	"slices"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// The methods of this file are for tests: they cause the misfortunes that a
// store can meet, and look at what is stored. They may be called at any time.

// Counters is what was asked of the store since New: blocks per code as they
// reached a server, batches, flushes and control calls. What was refused before
// a server was asked (fenced, invalid) is not counted.
type Counters struct {
	Batches, Reads, Writes, Discards, Flushes, Control uint64
}

// Requests is the number of block operations that reached a server.
func (c Counters) Requests() uint64 { return c.Reads + c.Writes + c.Discards }

type counters struct {
	batches, reads, writes, discards, flushes, control atomic.Uint64
}

// Counters returns what was counted so far: the difference of two calls proves,
// for one, that reading a hole sends nothing.
func (s *Store) Counters() Counters {
	c := &s.counters
	return Counters{
		Batches: c.batches.Load(), Reads: c.reads.Load(), Writes: c.writes.Load(),
		Discards: c.discards.Load(), Flushes: c.flushes.Load(), Control: c.control.Load(),
	}
}

// holder is the server of a key: the first one before Join.
func (s *Store) holder(k kvstore.Key) *server {
	if p := s.place.Load(); p != nil {
		if n := p.Server(k); n >= 0 && n < len(s.servers) {
			return s.servers[n]
		}
	}
	return s.servers[0]
}

// Drop loses one block, as an eviction does; false if it was not there.
func (s *Store) Drop(k kvstore.Key) bool { return s.holder(k).discard(k) }

// Corrupt flips a bit of a stored block and leaves its checksum; false if it is
// not there.
func (s *Store) Corrupt(k kvstore.Key) bool {
	return s.holder(k).edit(k, func(e *entry) { e.data[kvstore.BlockSize/2] ^= 0x10 })
}

// Misplace stores what is stored under from, with its checksum, also under to,
// which must exist: the data of one block answers for another one.
func (s *Store) Misplace(from, to kvstore.Key) bool {
	var got entry
	if !s.holder(from).edit(from, func(e *entry) {
		data := *e.data
		got = entry{&data, e.crc, e.version}
	}) {
		return false
	}
	return s.holder(to).edit(to, func(e *entry) { e.data, e.crc = got.data, got.crc })
}

// Forget empties a server: blocks, records (its sentinel too) and claims. Open
// channels go on, as connections survive a flush_all: they find absent blocks,
// and ErrServerLost at the next Flush. New channels get ErrServerLost at once.
func (s *Store) Forget(server int) { s.servers[server].forget() }

// Blocks returns how many blocks are stored, of all kinds.
func (s *Store) Blocks() int {
	n := int64(0)
	for _, sv := range s.servers {
		n += sv.blocks.Load()
	}
	return int(n)
}

// Keys lists the keys of all stored blocks, sorted by layer, kind and number.
func (s *Store) Keys() []kvstore.Key {
	var keys []kvstore.Key
	for _, sv := range s.servers {
		for i := range sv.shard {
			sh := &sv.shard[i]
			sh.mu.Lock()
			for k := range sh.entries {
				keys = append(keys, k)
			}
			sh.mu.Unlock()
		}
	}
	slices.SortFunc(keys, func(a, b kvstore.Key) int {
		return cmp.Or(cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Number, b.Number))
	})
	return keys
}
