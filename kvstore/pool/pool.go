// Package pool knows which servers hold a pool, which of them holds which
// block, which volumes exist, and who may write to them.
//
// It works on the control records of a store (kvstore.Control) only; data
// blocks never pass through it. Everything that it stores is versioned, carries
// a CRC, is changed by compare-and-swap on the first server and copied to every
// other one. docs/format.md specifies each byte.
//
// # The nouns
//
//   - The pool record: uuid, version, servers, slot table. Written by the first
//     volume create on an empty store ([Pool.Format]).
//   - A sentinel: a random id that a server is given when it joins. A server
//     that does not know it was emptied or replaced.
//   - The catalogue: which volumes and layers exist, each creating, ready or
//     removing, so that any daemon can finish what another one began.
//   - A volume record: name, uuid, size, layers, map height, holder, features.
//   - A lease: the one holder that may write to a volume, with a deadline.
//   - The memory: what the state directory remembers of each pool by URL (uuid
//     and sentinels), so that an emptied server is refused and not made anew.
package pool

import (
	"context"
	"errors"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Errors of this package, beside those of kvstore.
var (
	// ErrNoPool: the store is empty and was never formatted, as far as we know.
	ErrNoPool = errors.New("no pool on this store yet")
	// ErrForgotten: the store is empty, or a server lost its sentinel, but the
	// state directory remembers the pool: its data is lost.
	ErrForgotten = errors.New("store was emptied: it no longer knows this pool")
	// ErrOtherServers: the URL names other servers than the pool record.
	ErrOtherServers = errors.New("pool has other servers")
	// ErrNoVolume, ErrVolumeExists, ErrBadName, ErrBadSize: the catalogue's answers.
	ErrNoVolume     = errors.New("no such volume")
	ErrVolumeExists = errors.New("volume exists already")
	ErrBadName      = errors.New("bad volume name")
	ErrBadSize      = errors.New("bad volume size")
	// ErrHeld: another holder has the lease.
	ErrHeld = errors.New("volume is in use elsewhere")
	// ErrFormat: an unknown format version or an incompatible feature.
	ErrFormat = errors.New("unknown format")
)

// Options of Open.
type Options struct {
	// URL identifies the pool in the state directory and in messages; secrets
	// are masked already.
	URL string
	// Name is the pool's name on its servers, part of every control record's
	// name, so that several pools can share servers. Empty: "default".
	Name string
	// StateDir remembers pools and sentinels across reboots.
	StateDir string
	// RuntimeDir is on tmpfs: it holds this machine's host id until reboot.
	RuntimeDir string
}

// Pool is an opened pool. Safe for concurrent use. It implements
// kvstore.Placement once it is formatted.
type Pool struct{ unwritten }

// Open reads the pool record, compares it with the servers of the store and with
// the memory, and joins the store to it. An empty store that nobody remembers
// gives an unformatted Pool: Formatted is false, Volumes is empty, and the first
// CreateVolume formats it.
func Open(ctx context.Context, st kvstore.Store, opt Options) (*Pool, error) { panic("unwritten") }

// Formatted says whether the store holds a pool.
func (p *Pool) Formatted() bool { panic("unwritten") }

// UUID of the pool; zero while unformatted.
func (p *Pool) UUID() [16]byte { panic("unwritten") }

// Refresh reads the pool record and sentinels again: a daemon that began on an
// empty store learns that somebody formatted it. Cheap when formatted already.
func (p *Pool) Refresh(ctx context.Context) error { panic("unwritten") }

// Server implements kvstore.Placement: slot = hash(layer, number>>5), so that
// 128 KiB stay together; map pages are placed by their own number.
func (p *Pool) Server(k kvstore.Key) int { panic("unwritten") }

// Slot returns the slot of a key, for people.
func (p *Pool) Slot(k kvstore.Key) int { panic("unwritten") }

// Sentinel implements kvstore.Placement.
func (p *Pool) Sentinel(server int) (string, []byte) { panic("unwritten") }

// CheckSentinels reads every server's sentinel: ErrServerLost (as an OpError
// naming the server) if one lost it, ErrUnreachable if one does not answer.
func (p *Pool) CheckSentinels(ctx context.Context) error { panic("unwritten") }

// State of a volume or layer in the catalogue.
type State uint8

const (
	Creating State = iota + 1
	Ready
	Removing
)

// Layer is one layer of a volume. Volumes have one until snapshots come.
type Layer struct {
	ID   kvstore.LayerID
	UUID [16]byte // seeds the CRC of its blocks
}

// Volume is a volume record.
type Volume struct {
	Name       string
	UUID       [16]byte
	State      State
	Size       int64 // bytes, a multiple of kvstore.BlockSize
	Layers     []Layer
	MapHeight  uint8 // levels of the presence map; 0: the store keeps presence
	Created    time.Time
	Damaged    bool   // data was lost; set before the first EIO is given
	Generation uint64 // rises with each new holder
	// Features that a reader must know: unknown compatible ones are ignored,
	// unknown read-only compatible ones allow reading only, unknown incompatible
	// ones refuse.
	Compat, ROCompat, Incompat uint64
}

// MaxSize is the largest volume: 8 EiB would overflow loff_t, and 64 TiB keep
// the local map (1 bit per block, two bitmaps) within 4 GiB of sparse tmpfs.
const MaxSize = 64 << 40

// CheckName says whether s may name a volume: [A-Za-z0-9][A-Za-z0-9._-]{0,63}.
// Else ErrBadName with what is allowed.
func CheckName(s string) error { panic("unwritten") }

// CheckSize says whether n bytes may be a volume's size.
func CheckSize(n int64) error { panic("unwritten") }

// Volumes lists the catalogue, sorted by name, also what is Creating or Removing.
func (p *Pool) Volumes(ctx context.Context) ([]Volume, error) { panic("unwritten") }

// Volume reads one record: ErrNoVolume if there is none.
func (p *Pool) Volume(ctx context.Context, name string) (Volume, error) { panic("unwritten") }

// CreateVolume enters a volume as Creating, with a claimed layer id, and formats
// the pool first if need be. The caller makes the map and then calls Update to
// set it Ready. A leftover Creating volume of the same name is taken over.
func (p *Pool) CreateVolume(ctx context.Context, name string, size int64, mapHeight uint8) (Volume, error) {
	panic("unwritten")
}

// Update changes a record by compare-and-swap, calling f again on a conflict.
func (p *Pool) Update(ctx context.Context, name string, f func(*Volume) error) (Volume, error) {
	panic("unwritten")
}

// ForgetVolume takes a Removing volume, whose blocks are gone, out of the
// catalogue and drops its layers.
func (p *Pool) ForgetVolume(ctx context.Context, name string) error { panic("unwritten") }

// LeaseOptions of Acquire.
type LeaseOptions struct {
	// TTL is how long others wait for a silent holder; renewal is at a third of
	// it. 0: DefaultTTL.
	TTL time.Duration
	// Alone is true when the caller has proof that no other process of this
	// machine holds the volume (the lock on its local state): a lease that this
	// machine holds is then taken over at once.
	Alone bool
	// Resume keeps holder and generation of a lease that this machine holds
	// (recovery after a crash of the daemon); else the generation rises.
	Resume bool
	// Wait is how long to wait for another machine's lease to run out before
	// ErrHeld; 0: one TTL, negative: do not wait.
	Wait time.Duration
	// Notify, if not nil, is told what Acquire waits for.
	Notify func(msg string)
}

// DefaultTTL bounds how long a crashed machine keeps a volume from others.
const DefaultTTL = 20 * time.Second

// Holder says who holds a lease, for people.
type Holder struct {
	ID         [16]byte // random per acquisition
	Host       string   // host name
	PID        int
	Since      time.Time
	Generation uint64
	SameHost   bool // this machine, this boot
}

// Lease is the right to write to one volume. It renews itself until released.
type Lease struct{ unwritten }

// Acquire takes the volume's lease: ErrHeld, wrapped with the holder's name, if
// somebody else has it.
func (p *Pool) Acquire(ctx context.Context, volume string, opt LeaseOptions) (*Lease, error) {
	panic("unwritten")
}

// Holder reads who holds a volume; ok is false if nobody does.
func (p *Pool) Holder(ctx context.Context, volume string) (h Holder, ok bool, err error) {
	panic("unwritten")
}

// Fence is checked by the store before each send; it follows the lease.
func (l *Lease) Fence() *kvstore.Fence { panic("unwritten") }

// ID and Generation identify the holder in the local state.
func (l *Lease) ID() [16]byte { panic("unwritten") }

// Generation of this holding.
func (l *Lease) Generation() uint64 { panic("unwritten") }

// Wait blocks while the lease is past its deadline and being renewed; nil when
// writes may go on, ErrHeld if another holder took it, or ctx's error.
func (l *Lease) Wait(ctx context.Context) error { panic("unwritten") }

// Release gives the lease up. The caller has stopped writing and flushed.
func (l *Lease) Release(ctx context.Context) error { panic("unwritten") }

// Forget drops what the state directory remembers of a URL: the user's consent
// that its data is lost.
func Forget(stateDir, url string) error { panic("unwritten") }

// Close stops what runs in the background. Leases must be released.
func (p *Pool) Close() error { panic("unwritten") }

type unwritten struct{}
