// Package volume makes a disk of blocks: bytes become block operations, the
// presence map tells holes from losses, claims order what happens to one block.
//
// One road leads through it. A [Worker] takes the batch of requests that its
// transport has ready, splits them into block operations, answers holes from
// the map, sends the rest down in one kvstore.Channel.Do, and completes each
// request. Different workers run in parallel without a lock between them; what
// orders them is the claim of each block (claims.go).
package volume

import (
	"context"
	"errors"
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
	// Lease is passed on to pool.Acquire.
	Lease pool.LeaseOptions
	// Log receives one line per event that a user should know of. nil: discarded.
	Log func(format string, args ...any)
}

// Set is all volumes of one pool. Safe for concurrent use.
type Set struct{ unwritten }

// New returns the volumes of a pool. Nothing is read yet.
func New(p *pool.Pool, st kvstore.Store, opt Options) *Set { panic("unwritten") }

// Create makes an empty volume of size bytes (a multiple of kvstore.BlockSize).
func (s *Set) Create(ctx context.Context, name string, size int64) error { panic("unwritten") }

// Info describes a volume.
type Info struct {
	pool.Volume
	Open      bool  // by this Set
	Allocated int64 // bytes that are stored; -1: not known
	Holder    *pool.Holder
}

// List describes all volumes, sorted by name. It does not read maps: Allocated
// is -1 unless it is open here or the store knows.
func (s *Set) List(ctx context.Context) ([]Info, error) { panic("unwritten") }

// Info describes one volume; Allocated is exact (the map is read if need be).
func (s *Set) Info(ctx context.Context, name string) (Info, error) { panic("unwritten") }

// Remove deletes a volume and all of its blocks: ErrInUse if it is open here or
// held elsewhere. progress, if not nil, is told how many blocks are gone of how
// many. A removal that was interrupted is resumed by the next Remove or Resume.
func (s *Set) Remove(ctx context.Context, name string, progress func(done, total int64)) error {
	panic("unwritten")
}

// ResumeRemovals finishes what an interrupted Remove left.
func (s *Set) ResumeRemovals(ctx context.Context) error { panic("unwritten") }

// Resize changes a volume's size, open or not; shrinking needs allowShrink and a
// volume that is not open anywhere, and discards what lies beyond the new end
// before the size changes.
func (s *Set) Resize(ctx context.Context, name string, size int64, allowShrink bool) error {
	panic("unwritten")
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

// Where finds the block of a byte offset. It works on open and closed volumes.
func (s *Set) Where(ctx context.Context, name string, off int64) (Place, error) { panic("unwritten") }

// Open opens a volume. For writing it takes the lease and recovers the local
// state that a crashed daemon of this machine left. Opening what this Set has
// open already gives the same Volume with one more reference; a volume open for
// reading is upgraded in place when it is opened for writing.
func (s *Set) Open(ctx context.Context, name string, write bool) (*Volume, error) { panic("unwritten") }

// Worker opens a worker with a channel of its own.
func (s *Set) Worker(ctx context.Context) (*Worker, error) { panic("unwritten") }

// Close closes what is left open, as Volume.Close does, and stops the
// background. All workers must be closed.
func (s *Set) Close(ctx context.Context) error { panic("unwritten") }

// Volume is an open volume. Its methods may be called by any goroutine.
type Volume struct{ unwritten }

// Name, Size in bytes, and Allocated (bytes stored, exact) cost no round trip.
func (v *Volume) Name() string     { panic("unwritten") }
func (v *Volume) Size() int64      { panic("unwritten") }
func (v *Volume) Allocated() int64 { panic("unwritten") }

// Writable says whether it is open for writing now.
func (v *Volume) Writable() bool { panic("unwritten") }

// SeekData returns the first offset at or after off that holds data, SeekHole
// the first in a hole (the end of the volume is one): ErrOutside as lseek(2)
// gives ENXIO.
func (v *Volume) SeekData(ctx context.Context, off int64) (int64, error) { panic("unwritten") }
func (v *Volume) SeekHole(ctx context.Context, off int64) (int64, error) { panic("unwritten") }

// SetTimeout bounds how long a request waits for a server that does not answer:
// 0, the default, waits for ever. It may change at any time.
func (v *Volume) SetTimeout(d time.Duration) { panic("unwritten") }

// Counters of a volume since it was opened.
func (v *Volume) Counters() Counters { panic("unwritten") }

// Counters count requests and blocks; all only ever rise while open.
type Counters struct {
	Reads, Writes, Discards, Flushes        uint64 // requests
	ReadBytes, WriteBytes, DiscardBytes     uint64
	HoleBlocks, ZeroBlocks, PartialBlocks   uint64 // answered from the map; not stored; read-modify-written
	LostBlocks, CorruptBlocks, HealedBlocks uint64
	PendingDeletions                        uint64 // not a counter: blocks still to be deleted
	Errors                                  uint64 // requests answered with an error
}

// Close drops one reference. The last one of a writable volume stops writes,
// flushes, drains the pending deletions and releases the lease; if that fails
// the error is returned and the volume stays open for another try.
func (v *Volume) Close(ctx context.Context) error { panic("unwritten") }

// RequestKind is what a request asks.
type RequestKind uint8

const (
	Read RequestKind = iota + 1
	Write
	Discard // drop the range: reads zeros afterwards, storage is freed
	Zero    // the range must read zeros (write-zeroes)
	Flush   // everything that was acknowledged before is stable afterwards
)

// Request is one request of a transport. The caller fills all but Err, keeps it
// alive until Do returns, and may use it again then.
type Request struct {
	Kind RequestKind
	Vol  *Volume
	Off  int64  // bytes, any alignment
	N    int64  // bytes of Discard and Zero; Read and Write go by Data
	Data []byte // read into or written from; never kept after Do
	Err  error  // nil means all of it was done
}

// MaxRequests is how many requests one Do takes.
const MaxRequests = 256

// Worker turns batches of requests into batches of block operations. One
// goroutine (or locked thread) uses it at a time; different workers run in
// parallel.
type Worker struct{ unwritten }

// Do serves the requests and returns when each has its result. At most 32 blocks
// of one request go into one batch of the store, in turn, so that large requests
// do not hold small ones up. Requests of one call may be done in any order, as
// a disk's queue.
func (w *Worker) Do(ctx context.Context, reqs []*Request) { panic("unwritten") }

// Close closes the worker's channel.
func (w *Worker) Close() error { panic("unwritten") }

type unwritten struct{}
