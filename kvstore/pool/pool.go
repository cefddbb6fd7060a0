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
//     volume create on an empty store (format.go).
//   - A sentinel: a random id that a server is given when it joins. A server
//     that does not know it was emptied or replaced.
//   - The catalogue: which volumes exist, each creating, ready or
//     removing, so that any daemon can finish what another one began.
//   - A volume record: name, uuid, size, layers, map height, holder, features.
//   - A lease: the one holder that may write to a volume, or the readers that share
//     it, with a deadline.
//   - The memory: what the state directory remembers of each pool by URL (uuid
//     and sentinels), so that an emptied server is refused and not made anew.
//   - The master: the first server of the pool record, where every change is
//     decided.
//
// # The data flow
//
// A change goes read (master) -> decide -> compare-and-swap (master) -> copy to
// every other server (copies.go), and begins again if somebody else was faster.
// The catalogue says that a volume exists, the volume record what it is
// (catalogue.go, volumes.go). Leases are on the master only (lease.go); a
// goroutine for each one renews it (renew.go) and moves the fence that stores
// check before each send. The data path asks only Server and Sentinel, which
// read an immutable table by one atomic load (placement.go).
//
// # Lock order
//
// Pool.formatMu, held over I/O by Open, Refresh and the first CreateVolume; below
// it Pool.mu and Lease.mu, which are leaves and never held over I/O.
package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	// Log receives what a user should know of. nil: discarded.
	Log func(format string, args ...any)
	// Now is the time of day for what is noted in records. Nothing waits for it or
	// runs out by it. nil: time.Now.
	Now func() time.Time
	// Damaged opens the pool although servers lost their sentinels, to look at what
	// is lost: see Lost. Nothing is written, nor remembered.
	Damaged bool
}

// Pool is an opened pool. Safe for concurrent use. It implements
// kvstore.Placement once it is formatted.
type Pool struct {
	st      kvstore.Store
	ctl     kvstore.Control
	opt     Options
	servers []string // the store's, by server number
	host    hostID

	table atomic.Pointer[table] // nil until formatted
	lost  []int                 // set by Open; with Options.Damaged only
	// looking: nothing may be written. Until AcceptLost, which nobody calls beside
	// anything else.
	looking bool

	formatMu sync.Mutex // held while the pool is looked for or made, over I/O

	mu       sync.Mutex          // guards creating, leases, closed; never held over I/O
	creating map[string][16]byte // uuids of volumes that CreateVolume began here
	leases   map[*Lease]struct{} // with a renewal in the background
	closed   bool
}

// Open reads the pool record, compares it with the servers of the store and with
// the memory, and joins the store to it. An empty store that nobody remembers
// gives an unformatted Pool: Formatted is false, Volumes is empty, and the first
// CreateVolume formats it.
//
// The store stays the caller's: it must stay open until the Pool is closed.
func Open(ctx context.Context, st kvstore.Store, opt Options) (*Pool, error) {
	if opt.Name == "" {
		opt.Name = DefaultName
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if err := CheckName(opt.Name); err != nil {
		return nil, fmt.Errorf("name of the pool: %w", err)
	}
	host, err := readHostID(opt.RuntimeDir)
	if err != nil {
		return nil, err
	}
	p := &Pool{st: st, ctl: st.Control(), opt: opt, servers: st.Servers(), host: host,
		looking: opt.Damaged, creating: map[string][16]byte{}, leases: map[*Lease]struct{}{}}
	if opt.URL == "" {
		p.opt.URL = strings.Join(p.servers, ",")
	}
	p.formatMu.Lock()
	defer p.formatMu.Unlock()
	if _, err := p.find(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Formatted says whether the store holds a pool.
func (p *Pool) Formatted() bool { return p.table.Load() != nil }

// UUID of the pool; zero while unformatted.
func (p *Pool) UUID() [16]byte {
	if t := p.table.Load(); t != nil {
		return t.record.uuid
	}
	return [16]byte{}
}

// Refresh reads the pool record and sentinels again: a daemon that began on an
// empty store learns that somebody formatted it. When it is formatted already
// nothing is read: CheckSentinels does that.
func (p *Pool) Refresh(ctx context.Context) error {
	if p.Formatted() {
		return nil
	}
	p.formatMu.Lock()
	defer p.formatMu.Unlock()
	if p.Formatted() {
		return nil
	}
	_, err := p.find(ctx)
	return err
}

// Close stops what runs in the background. Leases must be released: one that is
// not stays this machine's in the store until it runs out, and its fence is
// closed at once, as after a crash.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	left := slices.Collect(maps.Keys(p.leases))
	p.mu.Unlock()
	for _, l := range left {
		l.abandon()
	}
	return nil
}
