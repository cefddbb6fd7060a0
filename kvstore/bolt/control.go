package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// maxName is the longest record name, as on the other stores.
const maxName = 250

type control struct{ s *Store }

// call runs f with the bucket of the records in one transaction.
func (c control) call(ctx context.Context, op string, n int, name string, size int, change bool, f func(*bbolt.Bucket) error) error {
	err := c.s.usable(ctx)
	switch {
	case err != nil:
	case n != 0, name == "", len(name) > maxName:
		err = fmt.Errorf("%w: server %d, a name of %d bytes", kvstore.ErrInvalid, n, len(name))
	case size > kvstore.MaxRecord:
		err = fmt.Errorf("%w: a record of %d bytes", kvstore.ErrInvalid, size)
	case change:
		err = classify(c.s.update(func(tx *bbolt.Tx) error { return f(tx.Bucket(recordsBucket)) }))
	default:
		err = classify(c.s.view(func(tx *bbolt.Tx) error { return f(tx.Bucket(recordsBucket)) }))
	}
	if err != nil {
		return &kvstore.OpError{Op: op, Server: c.s.path, Name: name, Err: err}
	}
	return nil
}

// Get implements kvstore.Control.
func (c control) Get(ctx context.Context, n int, name string) (rec kvstore.Record, err error) {
	err = c.call(ctx, "get record", n, name, 0, false, func(b *bbolt.Bucket) error {
		v := b.Get([]byte(name))
		if v == nil {
			return kvstore.ErrAbsent
		}
		rec = kvstore.Record{Version: binary.BigEndian.Uint64(v), Value: bytes.Clone(v[8:])}
		return nil
	})
	return rec, err
}

// put stores a value behind a version that the bucket never had before.
func put(b *bbolt.Bucket, name string, value []byte) error {
	version, err := b.NextSequence()
	if err != nil {
		return err
	}
	return b.Put([]byte(name), append(binary.BigEndian.AppendUint64(nil, version), value...))
}

// Add implements kvstore.Control.
func (c control) Add(ctx context.Context, n int, name string, value []byte) error {
	return c.call(ctx, "add record", n, name, len(value), true, func(b *bbolt.Bucket) error {
		if b.Get([]byte(name)) != nil {
			return kvstore.ErrExists
		}
		return put(b, name, value)
	})
}

// Swap implements kvstore.Control.
func (c control) Swap(ctx context.Context, n int, name string, old kvstore.Record, value []byte) error {
	return c.call(ctx, "swap record", n, name, len(value), true, func(b *bbolt.Bucket) error {
		v := b.Get([]byte(name))
		switch {
		case v == nil:
			return kvstore.ErrAbsent
		case binary.BigEndian.Uint64(v) != old.Version:
			return kvstore.ErrConflict
		}
		return put(b, name, value)
	})
}

// Delete implements kvstore.Control.
func (c control) Delete(ctx context.Context, n int, name string) error {
	return c.call(ctx, "delete record", n, name, 0, true, func(b *bbolt.Bucket) error { return b.Delete([]byte(name)) })
}
