// Package memcached stores blocks in memcached servers.
//
// # Two roads
//
// The data plane ([kvstore.Channel]) speaks memcached's text protocol on its own
// raw sockets, pipelined: one sendmsg for the requests of a batch to a server,
// one recv for many replies. The control plane ([kvstore.Control], usage,
// inspection) goes through gomemcache and plain net.Conn.
//
// # The nouns
//
//   - A server is one memcached process ([server]): its address, what proves who
//     it is, its ballast, its outage if there is one. Shared by all channels.
//   - A channel belongs to one worker; it has Config.Connections connections to
//     each server ([conn]).
//   - A request is an operation on its way ([request]): it has a step (the
//     command that it sends next) and moves between a connection's queue (not
//     sent) and flight (sent, reply awaited).
//   - Ballast (ballast.go) is what lets overwrites succeed on a full server.
//
// # The life of a connection
//
//	closed -> dialing -> proving -> ready -> closed ...
//
// Proving reads the sentinel; nothing else is sent before it matched. A ready
// connection that fails puts its flight back into its queue, marked repeated:
// such a request may have been executed, so a repeated add or cas that is
// refused reads the block and compares. After changes were left unanswered the
// next dial waits until the server is done with the old connection, because what
// is queued there must not overwrite later data: on TCP it no longer lists it
// (stats conns), on a unix socket it closed its end. If the requests were given
// up meanwhile (a deadline), all channels wait for that before they send changes.
//
// A server that is silent is not given up: its connection stays, and what it
// still holds will be executed and answered there, in order. Only when the server
// answers elsewhere while this connection stays silent is the connection
// replaced.
//
// # Never set
//
// A failed set on a full server deletes the old value. So blocks are overwritten
// by replace and cas, and created by add.
//
// # Locks
//
// The data path takes none: channels own their connections, and what servers
// share is atomic, but for the outage log (wire.Outage), which is a leaf.
package memcached

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// DefaultTryTimeout is how long a server may be silent before it is asked
// elsewhere whether it lives.
const DefaultTryTimeout = 5 * time.Second

// maxConnections bounds Config.Connections: more only cost the server memory.
const maxConnections = 64

// errTooLarge: the server does not take values of a block's size.
var errTooLarge = fmt.Errorf("%w: the server's largest item (-I) is smaller than a block", kvstore.ErrUnsupported)

// serverError is an error line of a server.
type serverError struct{ line string }

func (e *serverError) Error() string { return fmt.Sprintf("server said %q", e.line) }

// Config of Open.
type Config struct {
	// Servers are host:port or the absolute path of a unix socket.
	Servers []string
	// Connections per channel and server; 0: 1.
	Connections int
	// TryTimeout: how long a try may make no progress; 0: DefaultTryTimeout.
	TryTimeout time.Duration
	// TLS, if not nil, is how the servers are spoken to, always. An empty
	// ServerName: the host in each server's address must be in its certificate.
	TLS *tls.Config
	// Auth, if not nil, is sent first on each connection.
	Auth *Auth
	// Network, if not nil, takes the place of the sockets: for simulations.
	Network Network
	// Log receives one line per outage event. nil: discarded.
	Log func(format string, args ...any)
	// TraceDir, on tmpfs, is where processes of this machine leave word of their data
	// connections, for a successor after a crash (predecessor.go). Empty: none.
	TraceDir string
}

// Store is a set of memcached servers.
type Store struct {
	cfg     Config
	servers []*server
	addrs   []string
	place   atomic.Pointer[kvstore.Placement]
	helpers *wire.Helpers
	trace   trace
	silent  atomic.Int32 // servers that are silent
}

var _ kvstore.Store = (*Store)(nil)

// server is one memcached process, shared by all channels.
type server struct {
	store   *Store
	number  int
	addr    string
	where   wire.Address
	client  *memcache.Client
	helpers *wire.Helpers // the store's
	ballast ballast

	// sentinelKey and sentinelValue are set by Join, before any channel.
	sentinelKey   string
	sentinelValue []byte

	// written says that a change was ever acknowledged here: from then on each
	// flush asks for the sentinel. Not only after new writes: a server that was
	// emptied since the last flush lost what that flush promised.
	written atomic.Bool

	holds   wire.Holds
	outage  wire.Outage
	silence wire.Silence
}

// Open checks the configuration, resolves the names and returns the store. It
// does not connect: Inspect does, and says what is wrong.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if len(cfg.Servers) == 0 {
		return nil, fmt.Errorf("memcached: no server is named: %w", kvstore.ErrInvalid)
	}
	if cfg.Connections < 0 || cfg.Connections > maxConnections {
		return nil, fmt.Errorf("memcached: %d connections per channel, want 1 to %d: %w", cfg.Connections, maxConnections, kvstore.ErrInvalid)
	}
	if cfg.Connections == 0 {
		cfg.Connections = 1
	}
	if cfg.TryTimeout <= 0 {
		cfg.TryTimeout = DefaultTryTimeout
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	s := &Store{cfg: cfg, addrs: cfg.Servers, trace: trace{dir: cfg.TraceDir}, helpers: wire.NewHelpers(cfg.Log)}
	for i, addr := range cfg.Servers {
		srv := &server{store: s, number: i, addr: addr, helpers: s.helpers.For("memcached " + addr)}
		srv.outage.Name, srv.outage.Log = "memcached "+addr, cfg.Log
		srv.silence.Count = &s.silent
		if err := srv.where.Lookup(ctx, addr); err != nil {
			s.helpers.Close()
			return nil, err
		}
		if srv.where.Network == "unix" && cfg.TLS != nil {
			s.helpers.Close()
			return nil, fmt.Errorf("memcached: TLS on the unix socket %s: %w", addr, kvstore.ErrInvalid)
		}
		srv.client = memcache.NewFromSelector(onlyServer{srv})
		srv.client.Timeout = cfg.TryTimeout
		srv.client.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return srv.dialLeashed(ctx) }
		s.servers = append(s.servers, srv)
	}
	return s, nil
}

// Properties implements kvstore.Store.
func (s *Store) Properties() kvstore.Properties {
	return kvstore.Properties{
		Name: "memcached", Durability: kvstore.Volatile,
		ReportsAbsent: true, Expects: true, Checksums: true, Reserve: true,
		Shared: true, MayForget: true,
	}
}

// Servers implements kvstore.Store.
func (s *Store) Servers() []string { return s.addrs }

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
		key, ok := controlKey(name)
		if !ok || len(value) > bufferSize/2 {
			return fmt.Errorf("sentinel %q of server %d is too long: %w", name, i, kvstore.ErrInvalid)
		}
		srv.sentinelKey, srv.sentinelValue = key, append([]byte(nil), value...)
	}
	if !s.place.CompareAndSwap(nil, &p) {
		return fmt.Errorf("joined already: %w", kvstore.ErrInvalid)
	}
	s.awaitPredecessors()
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

// RemoveLayer implements kvstore.Store. The claim stays, so that the id is never
// used again; there is nothing else per layer.
func (s *Store) RemoveLayer(ctx context.Context, layer kvstore.LayerID) error { return nil }

// NextExtent implements kvstore.Store: memcached does not know.
func (s *Store) NextExtent(context.Context, kvstore.LayerID, uint64, bool) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Allocated implements kvstore.Store: memcached does not know.
func (s *Store) Allocated(context.Context, kvstore.LayerID) (uint64, error) {
	return 0, kvstore.ErrUnsupported
}

// Close implements kvstore.Store.
func (s *Store) Close() error {
	s.helpers.Close()
	s.trace.close()
	var errs []error
	for _, srv := range s.servers {
		errs = append(errs, srv.client.Close())
	}
	return errors.Join(errs...)
}

// Locate implements kvstore.Store.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	number := 0
	if p := s.place.Load(); p != nil {
		number = (*p).Server(k)
	}
	if number < 0 || number >= len(s.servers) {
		return kvstore.Location{Key: keyText(k)}
	}
	srv := s.servers[number]
	key := keyText(k)
	target := "TCP:" + srv.addr
	if srv.where.Network == "unix" {
		target = "UNIX-CONNECT:" + srv.addr
	}
	return kvstore.Location{
		Server:  srv.addr,
		Key:     key,
		Command: fmt.Sprintf(`printf 'get %s\r\nquit\r\n' | socat -t 5 - %s`, key, shellQuote(target)),
	}
}

// shellQuote quotes where a shell would not take the word as it is.
func shellQuote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/.:_-,@", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
