package bolt

import (
	"context"
	"encoding/binary"
	"errors"

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
		c.change(ctx, ops)
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

// maxDiscard is how many blocks one transaction drops: it holds up every other
// change, and its memory grows with it.
const maxDiscard = 10_000

// change does all writes and discards in one transaction, and what is left of very
// large discards, with what comes behind them, in further ones. Of a transaction that
// fails nothing is done.
func (c *channel) change(ctx context.Context, ops []*kvstore.Op) {
	from := uint64(0)
	for {
		done, next, err := c.changeSome(ops, from)
		if err == nil {
			if ops, from = ops[done:], next; len(ops) == 0 {
				return
			}
			err = c.usable(ctx)
		}
		if err != nil {
			for _, op := range ops {
				if op.Err == nil && op.Code != kvstore.Read {
					op.Err = err
				}
			}
			return
		}
	}
}

// changeSome does the first operations in one transaction, up to a discard of which
// something is left, from block next on. from is that of the first operation: what was
// written behind a discard since stays.
func (c *channel) changeSome(ops []*kvstore.Op, from uint64) (done int, next uint64, err error) {
	err = classify(c.store.update(func(tx *bbolt.Tx) error {
		room := maxDiscard
		for ; done < len(ops); done, from = done+1, 0 {
			op := ops[done]
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
				if next, err = discard(b, op, from, &room); err != nil || room == 0 {
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
	return done, next, err
}

// discard removes the blocks of an extent that exist, from a block on, as long as there
// is room for more, and says where it goes on.
func discard(b *bbolt.Bucket, op *kvstore.Op, from uint64, room *int) (next uint64, err error) {
	end := op.Key.Number + uint64(max(op.Count, 1))
	c := b.Cursor()
	for next = max(from, op.Key.Number); *room > 0; *room-- {
		// Never from the beginning again: pages that were emptied stay until the commit,
		// and all of them would be passed each time.
		k, _ := c.Seek(blockName(next))
		if k == nil || binary.BigEndian.Uint64(k) >= end {
			return end, nil
		}
		next = binary.BigEndian.Uint64(k) + 1
		if err := c.Delete(); err != nil {
			return next, err
		}
	}
	return next, nil
}

// read does all reads in one transaction. If a part of the file cannot be read, each
// is done in its own, so that it costs nothing else its result.
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
	for i, op := range ops {
		switch {
		case op.Err != nil || op.Code != kvstore.Read:
		case len(ops) > 1 && errors.Is(err, kvstore.ErrCorrupt):
			c.read(ops[i : i+1])
		default:
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
