// Package volume makes a disk of blocks: bytes become block operations, the
// presence map tells holes from losses, claims order what happens to one block.
//
// One road leads through it. A [Worker] takes the batch of requests that its
// transport has ready, splits them into block operations, answers holes from
// the map, sends the rest down in one kvstore.Channel.Do, and completes each
// request. Different workers run in parallel without a lock between them; what
// orders them is the claim of each block (claims.go).
//
// # The nouns
//
//   - A [Set] is all volumes of a pool, a [Volume] one that is open, a [Worker]
//     one caller's way in, with a channel of its own.
//   - The presence map says which blocks were stored (presence.go). It is stored
//     in pages that form a tree (pages.go, tree.go). Stores that know themselves
//     which blocks exist have none.
//   - The local state is the map of a volume open for writing, in a file on tmpfs
//     that outlives a crash of the daemon (state.go, recover.go).
//   - A block that is present in the map and absent in the store is lost, never a
//     hole (settle.go, counters.go).
//   - A discarded block is pending until the reaper deleted its key (reaper.go).
//
// # The invariants
//
// A bit is set after its block was stored and before the request is answered. A
// page, and its bit in each parent, is stored before the first block of its range
// is. A key is deleted only when its bit is off in memory and in the page that
// was stored last, under the block's claim. A page is dirty from before a request
// that changed it is answered until a copy taken later is stored.
//
// # The order of locks
//
// The name's lock of the Set (open, close, resize, remove), then claims, then the
// gate of a volume (stores of map pages), then small mutexes that are never held
// across I/O. Who holds a claim never waits for another one; who holds a gate
// never waits for a claim.
package volume

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Errors of this package, beside those of pool and kvstore.
var (
	// ErrLost: a block that was written is not in the store any more.
	ErrLost = errors.New("block was written but the store no longer has it")
	// ErrReadOnly: the volume is open for reading only.
	ErrReadOnly = errors.New("volume is open read-only")
	// ErrOutside: the range lies beyond the end of the volume.
	ErrOutside = errors.New("beyond the end of the volume")
	// ErrOvertaken: somebody else got the right to write while this volume was open
	// here, which could not reach its store in time.
	ErrOvertaken = errors.New("volume was taken over while it was open here")
	// ErrInUse: the volume is open and must not be.
	ErrInUse = errors.New("volume is in use")
	// ErrShrink: making a volume smaller loses data and must be asked for.
	ErrShrink = errors.New("volume would shrink")
)

// Options of New.
type Options struct {
	// RuntimeDir is a directory on tmpfs for the local state of open volumes
	// (the shared mapping of presence pages).
	RuntimeDir string
	// StateDir keeps where an interrupted scrub goes on. Empty: it begins anew.
	StateDir string
	// Lease is passed on to pool.Acquire and pool.AcquireShared.
	Lease pool.LeaseOptions
	// Stale opens for reading without a lease, also while somebody writes: see Open.
	Stale bool
	// Log receives one line per event that a user should know of. nil: discarded.
	Log func(format string, args ...any)
	// Opened is called before anything of a layer is read after its volume was
	// opened: others may have written to it since it was last open here, so nothing
	// that is remembered of it may be believed. nil: nothing is remembered.
	Opened func(layer kvstore.LayerID)
	// Closed is called when nobody uses a layer any more, after its last flush: what
	// was acknowledged and not stored, as it could not be, is to be dropped. nil:
	// nothing is acknowledged before it is stored.
	Closed func(layer kvstore.LayerID)
}

// Info describes a volume.
type Info struct {
	pool.Volume
	Open      bool           // by this Set
	Allocated int64          // bytes that are stored; -1: not known
	Holder    *pool.Holder   // who may write
	Readers   []pool.Holder  // who share the lease while nobody may
	Consents  []pool.Consent // losses that were accepted; of Info only
}

// Place is where the block of one byte offset is.
type Place struct {
	Key      kvstore.Key
	Slot     int
	Location kvstore.Location
	Present  bool   // the map's bit; where the store keeps presence, its answer
	Stored   bool   // the store has the block
	CRC      uint32 // of what is stored
	Err      error  // why the block cannot be read, if it cannot
}

// Volume is an open volume. Its methods may be called by any goroutine.
type Volume struct {
	set   *Set
	name  string
	uuid  [16]byte
	layer kvstore.LayerID
	seed  uint32

	blocks   atomic.Uint64 // size
	timeout  atomic.Int64  // nanoseconds; 0: for ever
	writable atomic.Bool
	m        atomic.Pointer[presence] // nil: the store keeps presence
	lease    atomic.Pointer[pool.Lease]
	// reading is the share of the lease while it is open for reading; nil while it is
	// open for writing, and if it is stale.
	reading atomic.Pointer[pool.Lease]
	stale   bool // Options.Stale when it was opened
	// generation of the record when the map was read.
	generation atomic.Uint64
	fence      atomic.Pointer[kvstore.Fence]
	use        users
	counters   counters
	damaged    atomic.Bool
	markFailed atomic.Int64 // when the damaged mark could not be stored, of CLOCK_BOOTTIME; 0: never
	aborted    atomic.Bool  // given up: abort.go
	abortion   abortion
	// lostFlush is the reason why no flush of this volume can succeed any more.
	lostFlush atomic.Pointer[error]

	// The name's lock of the Set guards these.
	refs  int
	state *stateFile

	// gate guards what is stored of the presence map, and the change of its
	// height. It comes after claims and is never held while waiting for one.
	gate    gate
	height  uint8
	treeSeq uint64        // of the pages above level 0
	pageOps []*kvstore.Op // room for a batch

	excluded exclusion // discards against read-modify-writes, where the store keeps presence
	reaper   reaper
	losses   losses

	scrubbing atomic.Bool

	// accepting: opened by Repair, which may. Set before it is opened.
	accepting bool
	lostPages []pageID // when the map was read

	provisioned provisioned
}

// Name, Size in bytes, and Allocated (bytes stored, exact) cost no round trip.
func (v *Volume) Name() string { return v.name }
func (v *Volume) Size() int64  { return int64(v.blocks.Load()) * kvstore.BlockSize }

// Allocated is -1 if the store keeps presence and cannot say.
func (v *Volume) Allocated() int64 {
	if m := v.m.Load(); m != nil {
		return m.count.Load() * kvstore.BlockSize
	}
	n, err := v.set.store.Allocated(context.Background(), v.layer)
	if err != nil {
		return -1
	}
	return int64(n) * kvstore.BlockSize
}

// Writable says whether it is open for writing now.
func (v *Volume) Writable() bool { return v.writable.Load() }

// LeaseState says in a word under which lease it is open: write, read, lost
// (somebody else had it meanwhile), or none, if it is read without one.
func (v *Volume) LeaseState() string {
	writer, reader := v.lease.Load(), v.reading.Load()
	switch {
	case v.writable.Load() && writer != nil && writer.Over() != nil, reader != nil && reader.Over() != nil:
		return "lost"
	case v.writable.Load():
		return "write"
	case reader != nil:
		return "read"
	}
	return "none"
}

// SetTimeout bounds how long a request waits for a server that does not answer:
// 0, the default, waits for ever. It may change at any time, also for requests
// that wait already. Requests that a worker serves together and that began with
// the same timeout wait for the longest one of their volumes.
func (v *Volume) SetTimeout(d time.Duration) { v.timeout.Store(int64(max(0, d))) }

// waitLease waits until writes may go on.
func (v *Volume) waitLease(ctx context.Context) error {
	l := v.lease.Load()
	if l == nil {
		return ErrReadOnly
	}
	return overtaken(l.Wait(ctx))
}

// Counters count requests and blocks; all only ever rise while open.
type Counters struct {
	Reads, Writes, Discards, Flushes      uint64 // requests
	ReadBytes, WriteBytes, DiscardBytes   uint64
	HoleBlocks, ZeroBlocks, PartialBlocks uint64 // answered from the map; not stored; read-modify-written
	// Requests that met a block which was written and cannot be read, by what is
	// the matter with it, and blocks that were whole again after a write.
	LostBlocks, CorruptBlocks, MisplacedBlocks, ForeignBlocks, HealedBlocks uint64

	PendingDeletions uint64 // not a counter: blocks still to be deleted
	Errors           uint64 // requests answered with an error
}
