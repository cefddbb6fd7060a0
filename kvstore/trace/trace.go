// Package trace writes down which blocks are asked for, in their order, and reads
// that again: what replacement policies are compared with (test/policies).
//
// A trace is compressed by gzip. Each block that was read or written is one varint:
// how far its number is from the one after the block before (zigzag), and in the
// lowest bit whether it was written. A sequence takes a byte per block before it is
// compressed. Discards, and what is no data block, are not in it; volumes are not
// told apart, so a trace is made with one.
package trace

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Access is one block that was read or written.
type Access struct {
	Number uint64
	Write  bool
}

// Writer writes a trace. Safe for concurrent use.
type Writer struct {
	mu   sync.Mutex // guards all below; a leaf
	zip  *gzip.Writer
	out  *bufio.Writer
	next uint64
	err  error
}

// NewWriter begins a trace, which Close ends; w stays open.
func NewWriter(w io.Writer) *Writer {
	zip, _ := gzip.NewWriterLevel(w, gzip.BestCompression) // the level is one that there is
	return &Writer{zip: zip, out: bufio.NewWriter(zip)}
}

// Add writes down one access. An error shows at Close.
func (t *Writer) Add(a Access) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(a)
}

func (t *Writer) add(a Access) {
	far := int64(a.Number - t.next)
	v := uint64(far<<1^far>>63) << 1
	if a.Write {
		v |= 1
	}
	if _, err := t.out.Write(binary.AppendUvarint(nil, v)); err != nil && t.err == nil {
		t.err = err
	}
	t.next = a.Number + 1
}

// Close writes what is left, and returns the first error there was.
func (t *Writer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.out.Flush(); err != nil && t.err == nil {
		t.err = err
	}
	if err := t.zip.Close(); err != nil && t.err == nil {
		t.err = err
	}
	return t.err
}

// Read returns all of a trace.
func Read(r io.Reader) ([]Access, error) {
	zip, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("not a trace: %w", err)
	}
	var all []Access
	next := uint64(0)
	for in := bufio.NewReader(zip); ; {
		v, err := binary.ReadUvarint(in)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("trace is damaged after %d accesses: %w", len(all), err)
		}
		far := v >> 1
		next += far>>1 ^ -(far & 1)
		all = append(all, Access{Number: next, Write: v&1 != 0})
		next++
	}
}

// Store hands all on to the store below and writes down what it is asked for, in the
// order in which batches begin. The store is embedded: what is asked by another method
// is no access.
type Store struct {
	kvstore.Store
	w    *Writer
	done func(error) error
}

// Wrap decorates a store. done is called by Close with what Writer.Close returned.
func Wrap(inner kvstore.Store, w *Writer, done func(error) error) *Store {
	return &Store{Store: inner, w: w, done: done}
}

// Channel opens a channel of the store below.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	inner, err := s.Store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return &channel{Channel: inner, w: s.w}, nil
}

// Close closes the store below and ends the trace.
func (s *Store) Close() error {
	err := s.Store.Close()
	if e := s.done(s.w.Close()); err == nil {
		err = e
	}
	return err
}

type channel struct {
	kvstore.Channel
	w *Writer
}

func (c *channel) note(ops []*kvstore.Op) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for _, op := range ops {
		if op.Key.Kind == kvstore.KindBlock && (op.Code == kvstore.Read || op.Code == kvstore.Write) {
			c.w.add(Access{Number: op.Key.Number, Write: op.Code == kvstore.Write})
		}
	}
}

// Do notes the batch and hands it on.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	c.note(ops)
	c.Channel.Do(ctx, ops)
}

// Try notes the batch and hands it on.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.note(ops)
	return c.Channel.Try(ctx, ops)
}
