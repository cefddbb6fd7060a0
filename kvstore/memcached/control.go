package memcached

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// onlyServer makes a gomemcache client of one server: which server holds what
// is the pool's business.
type onlyServer struct{ *server }

// PickServer implements memcache.ServerSelector.
func (o onlyServer) PickServer(string) (net.Addr, error) { return o, nil }

// Each implements memcache.ServerSelector.
func (o onlyServer) Each(f func(net.Addr) error) error { return f(o) }

// Network implements net.Addr.
func (o onlyServer) Network() string { return o.where.Network }

// String implements net.Addr.
func (o onlyServer) String() string { return o.addr }

// dial connects for the control plane.
func (s *server) dial(ctx context.Context) (net.Conn, error) {
	if n := s.store.cfg.Network; n != nil {
		return n.Dial(ctx, s.addr)
	}
	d := net.Dialer{Timeout: s.store.cfg.TryTimeout}
	line, err := d.DialContext(ctx, s.where.Network, s.addr)
	if err != nil || !s.greets() {
		return line, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.store.cfg.TryTimeout)
	defer cancel()
	raw := line
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if s.store.cfg.TLS != nil {
		c := tls.Client(raw, s.tlsConfig())
		if err := c.HandshakeContext(ctx); err != nil {
			line.Close()
			return nil, untrusted(err)
		}
		line = c
	}
	if err := s.authenticate(line); err != nil {
		line.Close()
		return nil, err
	}
	return line, nil
}

// Control implements kvstore.Store.
func (s *Store) Control() kvstore.Control { return control{s} }

type control struct{ s *Store }

// call runs f with the key of a record, in a goroutine of its own: gomemcache
// knows timeouts but no context. A call that ctx leaves behind ends with its
// timeout.
func (c control) call(ctx context.Context, op string, number int, name string, f func(*server, string) error) error {
	wrap := func(server string, err error) error {
		return &kvstore.OpError{Op: op, Server: server, Name: name, Err: err}
	}
	if number < 0 || number >= len(c.s.servers) {
		return wrap("", fmt.Errorf("%w: server %d of %d", kvstore.ErrInvalid, number, len(c.s.servers)))
	}
	srv := c.s.servers[number]
	key, ok := controlKey(name)
	if !ok {
		return wrap(srv.addr, fmt.Errorf("%w: a record's name has 1 to %d bytes, no spaces", kvstore.ErrInvalid, maxName))
	}
	if ctx.Err() != nil {
		return wrap(srv.addr, wire.ContextError(ctx))
	}
	if c.s.helpers.Life().Err() != nil {
		return wrap(srv.addr, kvstore.ErrClosed)
	}
	result := make(chan error, 1)
	c.s.helpers.Go(func(context.Context) {
		err := kvstore.Contain(func() error { return f(srv, key) })
		kvstore.LogPanic(c.s.cfg.Log, op+" on memcached "+srv.addr, err)
		result <- err
	})
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		return wrap(srv.addr, wire.ContextError(ctx))
	}
	if err == nil {
		return nil
	}
	return wrap(srv.addr, controlError(err))
}

// controlError maps gomemcache's errors to the contract's.
func controlError(err error) error {
	switch {
	case isContract(err):
		return err
	case errors.Is(err, memcache.ErrCacheMiss):
		return kvstore.ErrAbsent
	case errors.Is(err, memcache.ErrCASConflict):
		return kvstore.ErrConflict
	case errors.Is(err, memcache.ErrNotStored):
		return kvstore.ErrExists
	case errors.Is(err, memcache.ErrMalformedKey):
		return kvstore.ErrInvalid
	case isFull(err):
		return kvstore.ErrFull
	case strings.Contains(err.Error(), unauthenticated): // as isFull
		return fmt.Errorf("%w: %w: it wants a user and password", kvstore.ErrUnreachable, ErrAuth)
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
}

// isContract says whether err is one of the contract's already.
func isContract(err error) bool {
	for _, e := range []error{
		kvstore.ErrAbsent, kvstore.ErrExists, kvstore.ErrConflict, kvstore.ErrFull, kvstore.ErrInvalid,
		kvstore.ErrUnreachable, kvstore.ErrAborted, kvstore.ErrTimeout, kvstore.ErrUnsupported, kvstore.ErrClosed,
		kvstore.ErrPanic,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isFull recognises an out-of-memory reply, for which gomemcache has no error
// value: it quotes the server's line in its message.
func isFull(err error) bool {
	return strings.Contains(err.Error(), "SERVER_ERROR out of memory storing object")
}

// unreachable wraps an error of a control connection.
func unreachable(ctx context.Context, err error) error {
	switch {
	case isContract(err):
		return err
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return kvstore.ErrAborted
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
}

// Get implements kvstore.Control.
func (c control) Get(ctx context.Context, number int, name string) (kvstore.Record, error) {
	var rec kvstore.Record
	got := make(chan kvstore.Record, 1)
	err := c.call(ctx, "get record", number, name, func(srv *server, key string) error {
		it, err := again(func() (*memcache.Item, error) { return srv.client.Get(key) })
		if err == nil {
			got <- kvstore.Record{Value: it.Value, Version: it.CasID}
		}
		return err
	})
	if err == nil {
		rec = <-got
	}
	return rec, err
}

// again repeats a call once when it failed on a connection that the server had
// closed while it was idle in gomemcache's pool (a restart). Safe for reads only.
func again(f func() (*memcache.Item, error)) (*memcache.Item, error) {
	it, err := f()
	for range memcache.DefaultMaxIdleConns + 1 {
		if err == nil || !stale(err) {
			break
		}
		it, err = f()
	}
	return it, err
}

// stale says whether err means that an idle connection had been closed.
func stale(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Add implements kvstore.Control.
func (c control) Add(ctx context.Context, number int, name string, value []byte) error {
	if len(value) > kvstore.MaxRecord {
		return &kvstore.OpError{Op: "add record", Name: name, Err: kvstore.ErrInvalid}
	}
	value = bytes.Clone(value)
	return c.call(ctx, "add record", number, name, func(srv *server, key string) error {
		return srv.fresh(func() error { return srv.client.Add(&memcache.Item{Key: key, Value: value}) })
	})
}

// Swap implements kvstore.Control. On a full server it makes room with ballast.
func (c control) Swap(ctx context.Context, number int, name string, old kvstore.Record, value []byte) error {
	if len(value) > kvstore.MaxRecord {
		return &kvstore.OpError{Op: "swap record", Name: name, Err: kvstore.ErrInvalid}
	}
	value = bytes.Clone(value)
	return c.call(ctx, "swap record", number, name, func(srv *server, key string) error {
		it := &memcache.Item{Key: key, Value: value, CasID: old.Version}
		err := srv.fresh(func() error { return srv.client.CompareAndSwap(it) })
		if err == nil || !isFull(err) {
			return err
		}
		return srv.swapWithBallast(c.s.helpers.Life(), key, old.Version, value)
	})
}

// Delete implements kvstore.Control.
func (c control) Delete(ctx context.Context, number int, name string) error {
	return c.call(ctx, "delete record", number, name, func(srv *server, key string) error {
		err := srv.fresh(func() error { return srv.client.Delete(key) })
		if errors.Is(err, memcache.ErrCacheMiss) {
			return nil
		}
		return err
	})
}

// fresh looks that the client's idle connections live before a change is sent on
// one: a change must not be repeated blindly, and one that fails on a connection
// which the server closed long ago would be a false alarm.
func (s *server) fresh(f func() error) error {
	if _, err := again(func() (*memcache.Item, error) { return s.client.Get(":fresh") }); err != nil &&
		!errors.Is(err, memcache.ErrCacheMiss) {
		return err
	}
	return f()
}

// swapWithBallast is a cas for a full server: records of more than 192 bytes
// share the slab class of the blocks, and a lease must be renewable.
func (s *server) swapWithBallast(ctx context.Context, key string, version uint64, value []byte) error {
	for tries := 0; tries < maxBallastTries; {
		i, ok := s.pickBallast(0)
		if !ok {
			return kvstore.ErrFull
		}
		free := append(append([]byte("delete "), appendBallastKey(nil, i)...), "\r\n"...)
		cmd := []byte("cas " + key + " 0 0 ")
		cmd = strconv.AppendInt(cmd, int64(len(value)), 10)
		cmd = append(cmd, ' ')
		cmd = strconv.AppendUint(cmd, version, 10)
		cmd = append(append(cmd, "\r\n"...), value...)
		cmd = append(cmd, "\r\n"...)
		refill := append(append(appendBallastAdd(nil, i), ballastZeros[:]...), "\r\n"...)
		var kinds [3]replyKind
		err := s.talkMany(ctx, [][]byte{free, cmd, refill}, func(in *lineReader) error {
			for j := range kinds {
				line, err := in.line()
				if err != nil {
					return err
				}
				rep, err := parseReply(line)
				if err != nil {
					return err
				}
				kinds[j] = rep.kind
			}
			return nil
		})
		if err != nil {
			return err
		}
		if kinds[2] == replyFull {
			s.ballastLost(i)
		}
		if kinds[0] != replyNotFound || kinds[2] != replyFull { // as in acceptBallast
			tries++
		}
		switch kinds[1] {
		case replyStored:
			return nil
		case replyExists:
			return kvstore.ErrConflict
		case replyNotFound:
			return kvstore.ErrAbsent
		case replyFull:
		default:
			return fmt.Errorf("%w: unexpected reply to cas", kvstore.ErrUnreachable)
		}
	}
	return kvstore.ErrFull
}
