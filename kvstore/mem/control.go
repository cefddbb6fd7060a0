package mem

import (
	"bytes"
	"context"

	"github.com/kvbfs/kvbfs/kvstore"
)

// maxName is the longest record name, as memcached's longest key.
const maxName = 250

// control implements kvstore.Control.
type control struct{ store *Store }

// server checks a call and returns its server, locked. The caller unlocks mu.
func (c control) server(ctx context.Context, op string, n int, name string, size int) (*server, error) {
	c.store.counters.control.Add(1)
	err := c.store.usable(ctx)
	if err == nil && (n < 0 || n >= len(c.store.servers) || !goodName(name) || size > kvstore.MaxRecord) {
		err = kvstore.ErrInvalid
	}
	if err != nil {
		return nil, &kvstore.OpError{Op: op, Name: name, Err: err}
	}
	sv := c.store.servers[n]
	sv.mu.Lock()
	return sv, nil
}

// goodName: what memcached takes as a key, so that nothing works here only.
func goodName(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] >= 0x7f {
			return false
		}
	}
	return name != "" && len(name) <= maxName
}

// Get returns a copy of a record.
func (c control) Get(ctx context.Context, n int, name string) (kvstore.Record, error) {
	sv, err := c.server(ctx, "get record", n, name, 0)
	if err != nil {
		return kvstore.Record{}, err
	}
	defer sv.mu.Unlock()
	rec, ok := sv.records[name]
	if !ok {
		return kvstore.Record{}, failed("get record", sv, name, kvstore.ErrAbsent)
	}
	return kvstore.Record{Value: bytes.Clone(rec.value), Version: rec.version}, nil
}

// Add creates a record.
func (c control) Add(ctx context.Context, n int, name string, value []byte) error {
	sv, err := c.server(ctx, "add record", n, name, len(value))
	if err != nil {
		return err
	}
	defer sv.mu.Unlock()
	if _, ok := sv.records[name]; ok {
		return failed("add record", sv, name, kvstore.ErrExists)
	}
	sv.records[name] = record{append([]byte{}, value...), sv.version.Add(1)}
	return nil
}

// Swap replaces the record that old was read from.
func (c control) Swap(ctx context.Context, n int, name string, old kvstore.Record, value []byte) error {
	sv, err := c.server(ctx, "swap record", n, name, len(value))
	if err != nil {
		return err
	}
	defer sv.mu.Unlock()
	rec, ok := sv.records[name]
	switch {
	case !ok:
		return failed("swap record", sv, name, kvstore.ErrAbsent)
	case rec.version != old.Version:
		return failed("swap record", sv, name, kvstore.ErrConflict)
	}
	sv.records[name] = record{append([]byte{}, value...), sv.version.Add(1)}
	return nil
}

// Delete removes a record.
func (c control) Delete(ctx context.Context, n int, name string) error {
	sv, err := c.server(ctx, "delete record", n, name, 0)
	if err != nil {
		return err
	}
	defer sv.mu.Unlock()
	delete(sv.records, name)
	return nil
}

func failed(op string, sv *server, name string, err error) error {
	return &kvstore.OpError{Op: op, Server: sv.name, Name: name, Err: err}
}
