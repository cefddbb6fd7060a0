package bolt

import (
	"bytes"
	"context"
	"encoding/binary"

	"go.etcd.io/bbolt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// sumSize is the length of the checksum behind a block's data.
const sumSize = 4

// channel has nothing of its own: transactions are the store's.
type channel struct {
	store  *Store
	closed bool
}

// Do implements kvstore.Channel.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	err := c.usable(ctx)
	if err == nil && len(ops) > kvstore.MaxBatch {
		err = kvstore.ErrInvalid
	}
	reads, writes := false, false
	for _, op := range ops {
		if op.Err = err; err == nil {
			op.Err = check(op)
		}
		reads = reads || op.Err == nil && op.Code == kvstore.Read
		writes = writes || op.Err == nil && op.Code != kvstore.Read
	}
	if writes {
		c.change(ops)
	}
	if reads {
		c.read(ops)
	}
	for _, op := range ops {
		if op.Err != nil {
			verb := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write"}[op.Code]
			if verb == "" {
				verb = "discard"
			}
			op.Err = &kvstore.OpError{Op: verb, Server: c.store.path, Key: op.Key, Err: op.Err}
		}
	}
}

// Try implements kvstore.Channel: a local file keeps nobody waiting for others.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

// Finish implements kvstore.Channel: Try leaves nothing.
func (c *channel) Finish(context.Context) {}

func (c *channel) usable(ctx context.Context) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	return c.store.usable(ctx)
}

// check says whether an operation keeps to the contract, and to our Properties.
func check(op *kvstore.Op) error {
	switch {
	case op.Key.Number > kvstore.MaxNumber:
		return kvstore.ErrInvalid
	case op.Code < kvstore.Read || op.Code > kvstore.Discard:
		return kvstore.ErrInvalid
	case op.Code != kvstore.Discard && len(op.Data) != kvstore.BlockSize:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Write && op.Expect > kvstore.Same:
		return kvstore.ErrInvalid
	case op.Code == kvstore.Write && op.Expect != kvstore.Any, op.Versioned, op.Key.Kind != kvstore.KindBlock:
		return kvstore.ErrUnsupported
	}
	return nil
}

// change does all writes and discards in one transaction. If that fails none is done.
func (c *channel) change(ops []*kvstore.Op) {
	err := classify(c.store.update(func(tx *bbolt.Tx) error {
		for _, op := range ops {
			if op.Err != nil || op.Code == kvstore.Read {
				continue
			}
			if op.Fence != nil && !op.Fence.Passes() {
				op.Err = kvstore.ErrFenced
				continue
			}
			b := tx.Bucket(layersBucket).Bucket(layerName(op.Key.Layer))
			if b == nil { // removed, or never claimed
				if op.Code == kvstore.Write {
					op.Err = kvstore.ErrAbsent
				}
				continue
			}
			if op.Code == kvstore.Discard {
				if err := discard(b, op); err != nil {
					return err
				}
				continue
			}
			value := make([]byte, 0, kvstore.BlockSize+sumSize) // bbolt keeps it until the commit
			value = append(value, op.Data...)
			value = binary.BigEndian.AppendUint32(value, kvstore.Checksum(op.Seed, op.Key, op.Data))
			if err := b.Put(blockName(op.Key.Number), value); err != nil {
				return err
			}
		}
		return nil
	}))
	if err == nil {
		return
	}
	for _, op := range ops {
		if op.Err == nil && op.Code != kvstore.Read {
			op.Err = err
		}
	}
}

// discard removes the blocks of an extent that exist.
func discard(b *bbolt.Bucket, op *kvstore.Op) error {
	first, end := blockName(op.Key.Number), blockName(op.Key.Number+uint64(max(op.Count, 1)))
	c := b.Cursor()
	for k, _ := c.Seek(first); k != nil && bytes.Compare(k, end) < 0; k, _ = c.Seek(first) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// read does all reads in one transaction.
func (c *channel) read(ops []*kvstore.Op) {
	err := classify(c.store.view(func(tx *bbolt.Tx) error {
		for _, op := range ops {
			if op.Err != nil || op.Code != kvstore.Read {
				continue
			}
			var value []byte
			if b := tx.Bucket(layersBucket).Bucket(layerName(op.Key.Layer)); b != nil {
				value = b.Get(blockName(op.Key.Number))
			}
			switch {
			case value == nil:
				op.Err = kvstore.ErrAbsent
			case len(value) != kvstore.BlockSize+sumSize:
				op.Err = &kvstore.CorruptError{Length: len(value)}
			default:
				copy(op.Data, value)
				sum := binary.BigEndian.Uint32(value[kvstore.BlockSize:])
				if sum != kvstore.Checksum(op.Seed, op.Key, op.Data) {
					op.Err = &kvstore.CorruptError{Length: kvstore.BlockSize, Sum: sum, Mask: ^uint32(0)}
				}
			}
		}
		return nil
	}))
	if err == nil {
		return
	}
	for _, op := range ops {
		if op.Err == nil && op.Code == kvstore.Read {
			op.Err = err
		}
	}
}

// Flush implements kvstore.Channel: what was acknowledged is on disk.
func (c *channel) Flush(ctx context.Context, _ kvstore.LayerID) error {
	if err := c.usable(ctx); err != nil {
		return &kvstore.OpError{Op: "flush", Server: c.store.path, Err: err}
	}
	return nil
}

// Close implements kvstore.Channel.
func (c *channel) Close() error {
	c.closed = true
	return nil
}
