package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// A stored record is its value and the tag of the write that stored it (8 bytes),
// as of a block.

// Control implements kvstore.Store.
func (s *Store) Control() kvstore.Control { return control{s} }

type control struct{ s *Store }

// call runs f with a server and the key of a record.
func (c control) call(ctx context.Context, op string, number int, name string, change bool, f func(ctx context.Context, c *goredis.Client, key string) error) error {
	wrap := func(server string, err error) error {
		return &kvstore.OpError{Op: op, Server: server, Name: name, Err: err}
	}
	if number < 0 || number >= len(c.s.servers) {
		return wrap("", fmt.Errorf("%w: server %d of %d", kvstore.ErrInvalid, number, len(c.s.servers)))
	}
	srv := c.s.servers[number]
	key, ok := recordKey(name)
	if !ok {
		return wrap(srv.name, fmt.Errorf("%w: a record's name has 1 to %d bytes, no spaces", kvstore.ErrInvalid, maxName))
	}
	if ctx.Err() != nil {
		return wrap(srv.name, wire.ContextError(ctx))
	}
	if c.s.helpers.Life().Err() != nil {
		return wrap(srv.name, kvstore.ErrClosed)
	}
	// go-redis sets no deadline of its own for some waits.
	bounded, cancel := context.WithTimeout(ctx, 2*c.s.cfg.TryTimeout)
	defer cancel()
	defer context.AfterFunc(c.s.helpers.Life(), cancel)()
	err := c.s.ask(bounded, number, key, change, func(c *goredis.Client) error { return f(bounded, c, key) })
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !isContract(err) {
		return wrap(srv.name, wire.ContextError(ctx))
	}
	return wrap(srv.name, controlError(err))
}

// askPause is between two tries of a control call while keys move.
const askPause = 20 * time.Millisecond

// ask runs a call on the node that has a key, and again elsewhere if that moved. A
// change is repeated only if it is known not to have been executed.
func (s *Store) ask(ctx context.Context, number int, key string, change bool, f func(*goredis.Client) error) error {
	for looked := false; ; {
		n := s.route([]byte(key), number)
		err := f(n.admin)
		if err == nil || !s.moves() || isContract(err) || errors.Is(err, goredis.Nil) {
			return err
		}
		var said goredis.Error
		var dial *net.OpError
		switch {
		case errors.As(err, &said):
			switch line := []byte(said.Error()); classify(line) {
			case refuseMoved:
				s.redirected(n, line)
			case refuseAsk: // the key is on its way; it is there in a moment
			case refuseLater, refuseReplica:
				s.lookNow(ctx)
			default:
				return err
			}
		case !looked && (!change || errors.As(err, &dial) && dial.Op == "dial"):
			looked = true
			s.lookNow(ctx)
			if s.route([]byte(key), number) == n {
				return err
			}
		default:
			s.lookAround() // for the next call
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askPause):
		}
	}
}

// controlError maps go-redis's errors to the contract's.
func controlError(err error) error {
	var said goredis.Error
	switch {
	case isContract(err):
		return err
	case errors.Is(err, goredis.Nil):
		return kvstore.ErrAbsent
	case errors.As(err, &said) && classify([]byte(said.Error())) == refuseFull:
		return kvstore.ErrFull
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
}

// isContract says whether err is one of the contract's already.
func isContract(err error) bool {
	for _, e := range []error{
		kvstore.ErrAbsent, kvstore.ErrExists, kvstore.ErrConflict, kvstore.ErrFull, kvstore.ErrInvalid,
		kvstore.ErrUnreachable, kvstore.ErrAborted, kvstore.ErrTimeout, kvstore.ErrUnsupported, kvstore.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Get implements kvstore.Control.
func (c control) Get(ctx context.Context, number int, name string) (rec kvstore.Record, err error) {
	err = c.call(ctx, "get record", number, name, false, func(ctx context.Context, c *goredis.Client, key string) error {
		rec, err = getRecord(ctx, c, key)
		return err
	})
	return rec, err
}

func getRecord(ctx context.Context, c *goredis.Client, key string) (kvstore.Record, error) {
	b, err := c.Get(ctx, key).Bytes()
	if err != nil {
		return kvstore.Record{}, err
	}
	n := len(b) - tagSize
	if n < 0 {
		return kvstore.Record{}, fmt.Errorf("%w: the value of %q is no record of ours", kvstore.ErrUnreachable, key)
	}
	return kvstore.Record{Value: b[:n:n], Version: binary.BigEndian.Uint64(b[n:])}, nil
}

// stamped returns a record's value with a new tag.
func stamped(value []byte) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(nil), value...), rand.Uint64())
}

// Add implements kvstore.Control. In a cluster a sentinel is added with its copies.
func (c control) Add(ctx context.Context, number int, name string, value []byte) error {
	if len(value) > kvstore.MaxRecord {
		return &kvstore.OpError{Op: "add record", Name: name, Err: kvstore.ErrInvalid}
	}
	taken := false
	err := c.call(ctx, "add record", number, name, true, func(ctx context.Context, c *goredis.Client, key string) error {
		ok, err := c.SetNX(ctx, key, stamped(value), 0).Result()
		taken = !ok
		return err
	})
	if err == nil && c.s.copied(name) {
		// Whoever came first: what is written next on any node is proven by them.
		err = c.copySentinel(ctx, number, name)
	}
	if err == nil && taken {
		err = &kvstore.OpError{Op: "add record", Server: c.s.names[number], Name: name, Err: kvstore.ErrExists}
	}
	return err
}

// Swap implements kvstore.Control, also on a full server.
func (c control) Swap(ctx context.Context, number int, name string, old kvstore.Record, value []byte) error {
	if len(value) > kvstore.MaxRecord {
		return &kvstore.OpError{Op: "swap record", Name: name, Err: kvstore.ErrInvalid}
	}
	return c.call(ctx, "swap record", number, name, true, func(ctx context.Context, c *goredis.Client, key string) error {
		tag := binary.BigEndian.AppendUint64(nil, old.Version)
		n, err := c.Eval(ctx, storeScript, []string{key}, stamped(value), "", tag).Int()
		switch {
		case err != nil:
			return err
		case n == 1:
			return nil
		case n == 0:
			return kvstore.ErrConflict
		}
		return kvstore.ErrAbsent
	})
}

// Delete implements kvstore.Control.
func (c control) Delete(ctx context.Context, number int, name string) error {
	if c.s.copied(name) {
		for i := range copies {
			if err := c.delete(ctx, number, copyKey(name, i)); err != nil {
				return err
			}
		}
	}
	return c.delete(ctx, number, name)
}

func (c control) delete(ctx context.Context, number int, name string) error {
	return c.call(ctx, "delete record", number, name, true, func(ctx context.Context, c *goredis.Client, key string) error {
		return c.Del(ctx, key).Err()
	})
}

// copied says whether a record has a copy in each part of a cluster.
func (s *Store) copied(name string) bool {
	return s.cfg.Mode == Cluster && strings.HasSuffix(name, ":sentinel")
}

// copySentinel stores the sentinel that is in the cluster under the keys of all its
// copies: a pipeline to each node, and what moved meanwhile one by one.
func (c control) copySentinel(ctx context.Context, number int, name string) error {
	rec, err := c.Get(ctx, number, name)
	if err != nil {
		return err
	}
	keys := map[*node][]string{}
	for i := range copies {
		key := copyKey(name, i)
		n := c.s.route([]byte(key), number)
		keys[n] = append(keys[n], key)
	}
	for n, list := range keys {
		done, _ := n.admin.Pipelined(ctx, func(p goredis.Pipeliner) error {
			for _, key := range list {
				p.Set(ctx, key, stamped(rec.Value), 0)
			}
			return nil
		})
		for i, key := range list {
			if i < len(done) && done[i].Err() == nil {
				continue
			}
			err := c.call(ctx, "add record", number, key, false, func(ctx context.Context, c *goredis.Client, key string) error {
				return c.Set(ctx, key, stamped(rec.Value), 0).Err()
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
