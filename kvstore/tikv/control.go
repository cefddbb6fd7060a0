package tikv

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/kvbfs/kvbfs/kvstore"
)

// maxName is the longest record name, as on the other stores.
const maxName = 250

// versionSize is the length of the version before a record's value: random, so that a
// compare-and-swap that the client repeats recognises what it wrote itself.
const versionSize = 8

type control struct{ s *Store }

// call runs f within controlTime.
func (c control) call(ctx context.Context, op string, n int, name string, size int, f func(ctx context.Context) error) error {
	err := c.s.usable(ctx)
	switch {
	case err != nil:
	case n != 0, name == "", len(name) > maxName:
		err = fmt.Errorf("%w: server %d, a name of %d bytes", kvstore.ErrInvalid, n, len(name))
	case size > kvstore.MaxRecord:
		err = fmt.Errorf("%w: a record of %d bytes", kvstore.ErrInvalid, size)
	default:
		limited, cancel := context.WithTimeout(ctx, c.s.limit)
		err = explain(ctx, f(limited))
		cancel()
	}
	if err != nil {
		return &kvstore.OpError{Op: op, Server: c.s.name, Name: name, Err: err}
	}
	return nil
}

// refusal is a result of the contract, as opposed to an error of the client.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// explain maps what a call ended with: what the client says is an outage.
func explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if r, ok := err.(refusal); ok {
		return r.error
	}
	if end := ended(ctx); end != nil {
		return end
	}
	return fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)
}

// Get implements kvstore.Control.
func (c control) Get(ctx context.Context, n int, name string) (rec kvstore.Record, err error) {
	err = c.call(ctx, "get record", n, name, 0, func(ctx context.Context) error {
		v, err := c.s.single.Get(ctx, recordKey(name))
		switch {
		case err != nil:
			return err
		case v == nil:
			return refusal{kvstore.ErrAbsent}
		case len(v) < versionSize:
			return refusal{kvstore.ErrCorrupt}
		}
		rec = kvstore.Record{Version: binary.BigEndian.Uint64(v), Value: bytes.Clone(v[versionSize:])}
		return nil
	})
	return rec, err
}

// fresh puts a new version before a value.
func fresh(value []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, rand.Uint64()), value...)
}

// add stores a value where there is none.
func (s *Store) add(ctx context.Context, key, value []byte) error {
	found, done, err := s.single.CompareAndSwap(ctx, key, nil, value)
	if err == nil && !done && !bytes.Equal(found, value) {
		return refusal{kvstore.ErrExists}
	}
	return err
}

// Add implements kvstore.Control.
func (c control) Add(ctx context.Context, n int, name string, value []byte) error {
	return c.call(ctx, "add record", n, name, len(value), func(ctx context.Context) error {
		return c.s.add(ctx, recordKey(name), fresh(value))
	})
}

// Swap implements kvstore.Control. TiKV compares values, so it needs the old one.
func (c control) Swap(ctx context.Context, n int, name string, old kvstore.Record, value []byte) error {
	return c.call(ctx, "swap record", n, name, len(value), func(ctx context.Context) error {
		key, next := recordKey(name), fresh(value)
		was, err := c.s.single.Get(ctx, key)
		switch {
		case err != nil:
			return err
		case was == nil:
			return refusal{kvstore.ErrAbsent}
		case len(was) < versionSize || binary.BigEndian.Uint64(was) != old.Version:
			return refusal{kvstore.ErrConflict}
		}
		found, done, err := c.s.single.CompareAndSwap(ctx, key, was, next)
		switch {
		case err != nil, done, bytes.Equal(found, next):
			return err
		case found == nil:
			return refusal{kvstore.ErrAbsent}
		}
		return refusal{kvstore.ErrConflict}
	})
}

// Delete implements kvstore.Control.
func (c control) Delete(ctx context.Context, n int, name string) error {
	return c.call(ctx, "delete record", n, name, 0, func(ctx context.Context) error {
		return c.s.single.Delete(ctx, recordKey(name))
	})
}

// CreateLayer implements kvstore.Store.
func (s *Store) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.do(ctx, "create layer "+id.String(), func(ctx context.Context) error {
		return s.add(ctx, claimKey(id), fresh(nil))
	})
}

// RemoveLayer implements kvstore.Store: the blocks go, the claim stays.
func (s *Store) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.do(ctx, "remove layer "+id.String(), func(ctx context.Context) error {
		s.counts.changed()
		defer s.counts.changed()
		from, to := blocksFrom(id, 0, 0)
		return s.raw.DeleteRange(ctx, from, to)
	})
}

// do runs a call that may take as long as the client tries.
func (s *Store) do(ctx context.Context, op string, f func(ctx context.Context) error) error {
	err := s.usable(ctx)
	if err == nil {
		err = explain(ctx, f(ctx))
	}
	if err != nil {
		return &kvstore.OpError{Op: op, Server: s.name, Err: err}
	}
	return nil
}
