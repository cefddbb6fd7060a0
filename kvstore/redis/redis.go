// Package redis stores blocks in Redis and Valkey: single servers, a master that
// Sentinels watch, or a Redis Cluster.
//
// # Two roads
//
// The data plane ([kvstore.Channel]) speaks RESP2 on its own raw sockets,
// pipelined: one sendmsg for the requests of a batch to a node, one readv that
// places the blocks of many replies into the callers' buffers. All else goes
// through go-redis: control records, inspection, Sentinel, the map of a cluster.
//
// # The nouns
//
//   - A server is what the pool places blocks on ([server]): a process, the master
//     that Sentinels name, or a whole cluster, which places keys itself.
//   - A node is one Redis process ([node]), shared by all channels.
//   - A channel belongs to one worker; it has Config.Connections connections to
//     each node ([conn]).
//   - A request is an operation on its way ([request]): it has a step (the command
//     that it sends next) and moves between a connection's queue (not sent) and
//     flight (sent, reply awaited), or to another node's connection (MOVED, ASK, a
//     failover).
//   - A tag is the random number of one write, stored with the block: what
//     compare-and-swap compares.
//
// # The life of a connection
//
//	closed -> dialing -> [securing] -> proving -> ready -> closed ...
//
// Proving sends the greeting: who we are, and by which history and sentinel the
// node shows that it is the one we know; nothing else is sent before it matched.
// A ready connection that fails puts its flight back into its queue, marked
// repeated: such a request may have been executed, so a repeated add or compare-and-
// swap that is refused looks whether the stored tag is its own. After changes were
// left unanswered the next dial waits until the node is done with the old connection
// (CLIENT LIST, after CLIENT KILL), because what is queued there must not overwrite
// later data. If the requests were given up meanwhile (a deadline), all channels
// wait for that before they send changes.
//
// A node that is silent is not given up, unless another one took its place: its
// connection stays, and what it still holds will be executed and answered there.
//
// # A full server
//
// With maxmemory-policy noeviction Redis refuses writes when full, and keeps the old
// value. Overwrites then go through a script that Redis lets pass (allow-oom): they
// take no room that was not taken before.
//
// # Locks
//
// The data path takes none: channels own their connections, and what nodes share is
// atomic. Store.mu guards the growth of the list of nodes, Store.mapping changes of who has
// what; both are leaves.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// DefaultTryTimeout is how long a server may be silent before it is asked
// elsewhere whether it lives.
const DefaultTryTimeout = 5 * time.Second

// maxConnections bounds Config.Connections: more only cost the server memory.
const maxConnections = 64

// Mode says how servers are found.
type Mode uint8

const (
	Direct   Mode = iota // each address is a server
	Sentinel             // the addresses are Sentinels, who know the master
	Cluster              // the addresses are some nodes of a Redis Cluster
)

// Config of Open.
type Config struct {
	Mode Mode
	// Servers are host:port or, with Direct, the absolute path of a unix socket.
	Servers []string
	// Master is the name that Sentinels know the master by.
	Master string
	// DB is the number of the database (SELECT); 0 on a cluster.
	DB int
	// User (ACL) and Password; both may be empty.
	User, Password string
	// TLS, if not nil, secures all connections but those to Sentinels.
	TLS *tls.Config
	// Connections per channel and node; 0: 1.
	Connections int
	// TryTimeout: how long a try may make no progress; 0: DefaultTryTimeout.
	TryTimeout time.Duration
	// WaitReplicas is how many replicas must have received what a flush covers.
	WaitReplicas int
	// WaitAOF: a flush waits until the append-only file is on disk (Redis 7.2).
	WaitAOF bool
	// Log receives one line per outage event. nil: discarded.
	Log func(format string, args ...any)
}

// Store is a set of Redis servers.
type Store struct {
	cfg        Config
	servers    []*server
	names      []string
	place      atomic.Pointer[kvstore.Placement]
	clientName string // CLIENT SETNAME of all data connections
	durability kvstore.Durability
	helpers    *wire.Helpers
	silent     atomic.Int32 // nodes that are silent

	nodes atomic.Pointer[[]*node] // only grows
	mu    sync.Mutex              // guards growth of nodes; a leaf

	// master is the node of a Sentinel store; slots are the nodes of a cluster.
	master  atomic.Pointer[node]
	slots   [slotCount]atomic.Pointer[node]
	looking atomic.Int64 // when lookAround began last, nanoseconds
	// guests are slots that have keys on a second node, and lodged is how many: guests.go.
	guests [slotCount]atomic.Pointer[guest]
	lodged atomic.Int32
	// aliases are addresses of nodes by the names that MOVED and ASK may call them, as the map
	// has them: or a node would be two.
	aliases sync.Map
	// mapping is held where these change, until who was ousted knows it, and where all
	// of what a node has counts at one moment. It is a leaf.
	mapping sync.Mutex
	looks   atomic.Uint64 // that were begun
	looked  uint64        // the newest one that was believed; guarded by mapping
	// told counts the MOVED that were believed, and mapped is how many of them were
	// known when the newest whole map was asked for: see hearsay.
	told, mapped atomic.Uint64

	histories histories
	rewinds   atomic.Uint64
}

var _ kvstore.Store = (*Store)(nil)

// server is what the contract calls one: something that holds blocks.
type server struct {
	name string
	// sentinelKey and sentinelValue are set by Join, before any channel.
	sentinelKey   string
	sentinelValue []byte
	// written says that a change was ever acknowledged here: from then on each
	// flush asks for the sentinel. Not only after new writes: a server that was
	// emptied since the last flush lost what that flush promised.
	written atomic.Bool
	// wentBack is why every flush fails: see history.go. nil: it does not.
	wentBack atomic.Pointer[kvstore.OpError]
}

// quiet keeps go-redis from writing to standard error: what matters of its troubles
// comes back as errors, or is told by our own log of outages.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

var silence = sync.OnceFunc(func() { goredis.SetLogger(quiet{}) })

// Open checks the configuration, finds the servers, and asks them how durable
// they are.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	silence()
	s := &Store{cfg: cfg, helpers: wire.NewHelpers(cfg.Log), clientName: ownName()}
	s.nodes.Store(new([]*node))
	s.histories = histories{stable: map[string]int64{}, of: map[*node]string{}, checking: map[*node]bool{}, why: map[*node]error{}, ledgers: map[*ledger]struct{}{}}
	if err := s.find(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	var err error
	if s.durability, err = s.lookDurability(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (c *Config) complete() error {
	switch {
	case len(c.Servers) == 0:
		return fmt.Errorf("redis: no server is named: %w", kvstore.ErrInvalid)
	case c.Connections < 0 || c.Connections > maxConnections:
		return fmt.Errorf("redis: %d connections per channel, want 1 to %d: %w", c.Connections, maxConnections, kvstore.ErrInvalid)
	case c.Mode == Sentinel && c.Master == "":
		return fmt.Errorf("redis: the name of the master is missing: %w", kvstore.ErrInvalid)
	case c.Mode == Cluster && c.DB != 0:
		return fmt.Errorf("redis: a cluster has one database, number 0: %w", kvstore.ErrInvalid)
	}
	if c.Connections == 0 {
		c.Connections = 1
	}
	if c.TryTimeout <= 0 {
		c.TryTimeout = DefaultTryTimeout
	}
	if c.Log == nil {
		c.Log = func(string, ...any) {}
	}
	return nil
}

// find makes the servers and their first nodes.
func (s *Store) find(ctx context.Context) error {
	switch s.cfg.Mode {
	case Sentinel:
		return s.findMaster(ctx)
	case Cluster:
		return s.findCluster(ctx)
	}
	for i, addr := range s.cfg.Servers {
		n, err := s.newNode(ctx, i, addr)
		if err != nil {
			return err
		}
		s.add(n)
		s.addServer(addr)
	}
	return nil
}

func (s *Store) addServer(name string) {
	s.servers = append(s.servers, &server{name: name})
	s.names = append(s.names, name)
}

// add puts a node into the list, or returns the one that has its address already.
func (s *Store) add(n *node) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.nodes.Load()
	for _, o := range old {
		if o.addr == n.addr && o.server == n.server {
			return o
		}
	}
	n.index = len(old)
	list := append(old[:len(old):len(old)], n)
	s.nodes.Store(&list)
	return n
}

// moves says whether keys may move between nodes.
func (s *Store) moves() bool { return s.cfg.Mode != Direct }

// route returns the node that has a key of a server now.
func (s *Store) route(key []byte, server int) *node {
	switch s.cfg.Mode {
	case Sentinel:
		return s.master.Load()
	case Cluster:
		return s.slots[keySlot(key)].Load()
	}
	return (*s.nodes.Load())[server]
}

// Properties implements kvstore.Store.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{
		Name: "redis", Durability: s.durability,
		ReportsAbsent: true, Expects: true, Checksums: true, Reserve: true,
		Shared: true, MayForget: true,
	}
}

// Servers implements kvstore.Store.
func (s *Store) Servers() []string { return s.names }

// Join implements kvstore.Store.
func (s *Store) Join(p kvstore.Placement) error {
	if p == nil {
		return fmt.Errorf("join without a placement: %w", kvstore.ErrInvalid)
	}
	if s.place.Load() != nil {
		return fmt.Errorf("joined already: %w", kvstore.ErrInvalid)
	}
	for i, srv := range s.servers {
		name, value := p.Sentinel(i)
		if name == "" {
			continue
		}
		key, ok := recordKey(name)
		if !ok || len(value) > bufferSize/2 {
			return fmt.Errorf("sentinel %q of server %d is too long: %w", name, i, kvstore.ErrInvalid)
		}
		srv.sentinelKey, srv.sentinelValue = key, append([]byte(nil), value...)
	}
	if !s.place.CompareAndSwap(nil, &p) {
		return fmt.Errorf("joined already: %w", kvstore.ErrInvalid)
	}
	for _, n := range *s.nodes.Load() {
		n.holds.UntilAll(s.helpers, n.drainDead())
	}
	return nil
}

// Channel implements kvstore.Store. It connects with the first operation.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	if s.helpers.Life().Err() != nil {
		return nil, &kvstore.OpError{Op: "open channel", Err: kvstore.ErrClosed}
	}
	p := s.place.Load()
	if p == nil {
		return nil, &kvstore.OpError{Op: "open channel", Err: fmt.Errorf("%w: not joined to a pool", kvstore.ErrInvalid)}
	}
	return newChannel(s, *p), nil
}

// CreateLayer implements kvstore.Store: an add of the claim on every server. What
// it claimed before an error stays claimed; ids are random, so none is missed.
func (s *Store) CreateLayer(ctx context.Context, layer kvstore.LayerID) error {
	for i := range s.servers {
		err := s.Control().Add(ctx, i, fmt.Sprintf("kvbfs:layer:%s", layer), []byte("claimed"))
		if err != nil {
			var op *kvstore.OpError
			if errors.As(err, &op) {
				op.Op = "create layer"
			}
			return err
		}
	}
	return nil
}

// AnySilent implements kvstore.Store.
func (s *Store) AnySilent() bool { return s.silent.Load() != 0 }

// Rewinds implements kvstore.Store.
func (s *Store) Rewinds() uint64 { return s.rewinds.Load() }

// Silent implements kvstore.Store.
func (s *Store) Silent(k kvstore.Key) bool {
	p := s.place.Load()
	if p == nil || s.silent.Load() == 0 {
		return false
	}
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	i := (*p).Server(k)
	return i >= 0 && i < len(s.servers) && s.route(raw[:], i).silence.Silent()
}

// RemoveLayer implements kvstore.Store. The claim stays, so that the id is never
// used again; there is nothing else per layer.
func (s *Store) RemoveLayer(context.Context, kvstore.LayerID) error { return nil }

// NextExtent implements kvstore.Store: Redis does not know.
func (s *Store) NextExtent(context.Context, kvstore.LayerID, uint64, bool) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Allocated implements kvstore.Store: Redis does not know.
func (s *Store) Allocated(context.Context, kvstore.LayerID) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Close implements kvstore.Store.
func (s *Store) Close() error {
	s.helpers.Close()
	var errs []error
	for _, n := range *s.nodes.Load() {
		errs = append(errs, n.admin.Close())
	}
	return errors.Join(errs...)
}
