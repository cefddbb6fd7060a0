// Package tikv is a store on TiKV, through the raw key-value API of its own client
// (github.com/tikv/client-go). It is experimental: it has only ever run against the
// client's mock. It is a module of its own, so that the some forty modules that the client
// needs stay out of kvbfs; docs/stores.md says what it promises and how it is built.
//
// # The nouns
//
//   - PD is TiKV's directory: a few processes that know which of the cluster's stores
//     (its word for a process with data) leads which region, a range of keys.
//   - To kvbfs all of it is one server: the client routes, and follows regions that
//     split and move.
//   - A claim, a record and a mark are small values beside the blocks; keys.go has
//     the layout.
//
// # Data flow
//
// Channel.Do hands a batch to a goroutine, which calls the client with all writes, then
// all discards, then all reads, and again until they are done: the client spreads them over
// regions, sends them in groups of 16 KiB and repeats by itself for up to 20 seconds.
// TiKV keeps keys in order, so the store itself knows which blocks exist, and kvbfs needs
// no presence map.
//
// # Writes that were given up
//
// What was sent and not answered may be executed later. TiKV is told to drop a write that
// it has not begun after three seconds; so the block is haunted for five, in which no other
// change of it is sent (haunt.go).
//
// # Locks
//
// haunts.mu and counts.mu are leaves.
package tikv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pingcap/log"
	"github.com/tikv/client-go/v2/rawkv"
	"github.com/tikv/client-go/v2/tikv"
	pd "github.com/tikv/pd/client"
	"go.uber.org/zap"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

const (
	// findTime is how long Open waits for an answer of PD.
	findTime = 10 * time.Second
	// controlTime is how long a call of Control waits: it does not retry for ever.
	controlTime = 5 * time.Second
)

// Config of Open.
type Config struct {
	PD  []string                         // host:port each, at least one
	Log func(format string, args ...any) // may be nil
}

// Store is an opened cluster. Safe for concurrent use.
type Store struct {
	name   string
	names  []string
	log    func(format string, args ...any)
	pd     pd.Client
	raw    *rawkv.Client // blocks
	single *rawkv.Client // the same for claims and records: writes that go with compare-and-swap
	stop   func()        // ends the life of the PD client
	limit  time.Duration // of a call of Control

	haunts *haunts
	counts counts
	outage wire.Outage
	past   predecessors

	opened int64 // of Boottime
	place  atomic.Pointer[kvstore.Placement]
	silent atomic.Int32 // batches that Try left
	closed atomic.Bool
}

var _ kvstore.Store = (*Store)(nil)

// quiet keeps the client's log, which goes to standard error, out of ours.
var quiet = sync.OnceFunc(func() {
	log.ReplaceGlobals(zap.NewNop(), &log.ZapProperties{Level: zap.NewAtomicLevelAt(zap.FatalLevel)})
})

// Open connects to a cluster by its PD servers.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if len(cfg.PD) == 0 {
		return nil, fmt.Errorf("tikv: no PD server is named: %w", kvstore.ErrInvalid)
	}
	quiet()
	name := strings.Join(cfg.PD, ",")
	life, stop := context.WithCancel(context.Background())
	type answer struct {
		client pd.Client
		err    error
	}
	found := make(chan answer, 1)
	go func() { // it tries for minutes and knows no other context than that of its life
		c, err := pd.NewClientWithContext(life, cfg.PD, pd.SecurityOption{})
		found <- answer{c, err}
	}()
	late := time.NewTimer(findTime)
	defer late.Stop()
	err := error(kvstore.ErrUnreachable)
	select {
	case a := <-found:
		if err = a.err; err == nil {
			codec := tikv.NewCodecPDClient(tikv.ModeRaw, a.client)
			return assemble(name, cfg.Log, codec, tikv.NewRPCClient(tikv.WithCodec(codec.GetCodec())), stop), nil
		}
		err = fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
	case <-late.C:
	case <-ctx.Done():
	}
	stop()
	return nil, &kvstore.OpError{Op: "ask PD for the cluster", Server: name, Err: err}
}

// assemble puts a store on the two halves of the client: who asks PD, and who talks to
// the cluster's stores. It owns both.
func assemble(name string, logf func(string, ...any), directory pd.Client, rpc tikv.Client, stop func()) *Store {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	s := &Store{
		name: name, names: []string{name}, log: logf, pd: directory, stop: stop, limit: controlTime, haunts: newHaunts(), past: predecessors{turn: make(chan struct{}, 1)},
		opened: kvstore.Boottime(),
		outage: wire.Outage{Name: "tikv " + name, Log: logf},
	}
	raw := new(rawkv.Client)
	probe := rawkv.ClientProbe{Client: raw} // the one way to come between the client and its connections
	probe.SetPDClient(directory)
	probe.SetRegionCache(tikv.NewRegionCache(directory))
	probe.SetRPCClient(&witness{Client: rpc, haunts: s.haunts})
	single := *raw
	s.raw, s.single = raw, single.SetAtomicForCAS(true)
	return s
}

// Properties implements kvstore.Store. TiKV acknowledges a write when most replicas of
// its region have it in their logs; whether those logs are synced it does not tell.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{
		Name: "tikv", Durability: kvstore.Server,
		Presence: true, ReportsAbsent: true, Checksums: true, DiscardExtents: true,
		Shared: true, MayForget: true,
	}
}

// Servers returns the PD addresses as one name.
func (s *Store) Servers() []string { return s.names }

// Control returns the records.
func (s *Store) Control() kvstore.Control { return control{s} }

// Join implements kvstore.Store.
func (s *Store) Join(p kvstore.Placement) error {
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	if err := s.usable(context.Background()); err != nil {
		return err
	}
	s.place.Store(&p)
	return nil
}

// Channel implements kvstore.Store.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if s.place.Load() == nil {
		return nil, fmt.Errorf("channel before join: %w", kvstore.ErrInvalid)
	}
	return &channel{store: s}, nil
}

// Usage implements kvstore.Store. How full its stores are PD tells over another
// protocol, which the client does not have.
func (s *Store) Usage(ctx context.Context) (kvstore.Usage, error) {
	return kvstore.Usage{Blocks: -1}, s.usable(ctx)
}

// copies is how many stores a cluster needs so that the loss of one loses nothing.
const copies = 3

// Inspect implements kvstore.Store.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTime)
	defer cancel()
	stores, err := s.pd.GetAllStores(ctx)
	if err != nil {
		return nil, &kvstore.OpError{Op: "ask PD for the stores", Server: s.name, Err: fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)}
	}
	findings := []kvstore.Finding{{
		Server: s.name, Severity: kvstore.Warn,
		What: "TiKV is experimental: this driver has only run against a mock of it",
		Fix:  "keep no data on it that is nowhere else",
	}}
	if len(stores) < copies {
		findings = append(findings, kvstore.Finding{
			Server: s.name, Severity: kvstore.Warn,
			What: fmt.Sprintf("the cluster has %d stores: the loss of one may lose data", len(stores)),
			Fix:  fmt.Sprintf("run %d stores or more, and keep PD's max-replicas at 3", copies),
		})
	}
	return findings, nil
}

// Silent implements kvstore.Store: to us there is one server.
func (s *Store) Silent(kvstore.Key) bool { return s.AnySilent() }

// AnySilent implements kvstore.Store.
func (s *Store) AnySilent() bool { return s.silent.Load() != 0 }

// Rewinds implements kvstore.Store: a cluster that goes on has what most replicas
// agreed on.
func (s *Store) Rewinds() uint64 { return 0 }

// Haunted implements kvstore.Store.
func (s *Store) Haunted(k kvstore.Key) bool {
	if kvstore.Boottime() < s.opened+int64(s.haunts.age) {
		return true // by a process before this one: reads ask nobody whether there was one
	}
	from, to := blocksFrom(k.Layer, k.Number, 1)
	return s.haunts.until(string(from), string(to)) != 0
}

// Locate implements kvstore.Store. Which of the cluster's stores has a key now, it
// does not say: that changes.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	key := fmt.Sprintf("%x", blockKey(k))
	return kvstore.Location{Server: s.name, Key: key}
}

// Close implements kvstore.Store.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.past.leave(s)
	err := s.raw.Close()
	s.stop()
	return err
}

// usable says why a call cannot be done now.
func (s *Store) usable(ctx context.Context) error {
	if s.closed.Load() {
		return kvstore.ErrClosed
	}
	return ended(ctx)
}

// ended maps how a context ended to the contract's errors; nil if it has not.
func ended(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}
