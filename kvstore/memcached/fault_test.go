package memcached

import (
	"errors"
	"fmt"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// TestFlushFindsFlushAll: a neighbour's flush_all breaks no connection.
func TestFlushFindsFlushAll(t *testing.T) {
	server := memcachedtest.Start(t, memcachedtest.Bare())
	s := open(t, Config{}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	want(t, do1(t, ch, write(1, kvstore.Present, block(2))), nil)
	if err := s.servers[0].client.DeleteAll(); err != nil {
		t.Fatal(err)
	}
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	want(t, other.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

func TestCorruptBlocks(t *testing.T) {
	server := memcachedtest.Start(t)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	set := func(n uint64, flags uint32, data []byte) {
		t.Helper()
		cmd := fmt.Sprintf("set %s %d 0 %d\r\n%s\r\n", keyText(key(n)), flags, len(data), data)
		err := s.servers[0].talk(bg(t), []byte(cmd), func(in *lineReader) error { _, err := in.line(); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	good := block(1)
	flags := blockFlags(7, key(1), good)
	for name, c := range map[string]struct {
		spoil  func()
		length int  // that the error tells
		block  bool // with a checksum
		origin bool // that of block 2
	}{
		"short":      {func() { set(1, flags, good[:4000]) }, 4000, false, false},
		"empty":      {func() { set(1, flags, nil) }, 0, false, false},
		"long":       {func() { set(1, flags, append(block(1), 1)) }, 4097, false, false},
		"very long":  {func() { set(1, flags, make([]byte, 900<<10)) }, 900 << 10, false, false},
		"no flags":   {func() { set(1, 0, good) }, 4096, false, false},
		"other flag": {func() { set(1, flags^1, good) }, 4096, true, false},
		"other data": {func() { set(1, flags, block(2)) }, 4096, true, false},
		"swapped":    {func() { set(1, blockFlags(7, key(2), good), good) }, 4096, true, true},
		"other seed": {func() { set(1, blockFlags(8, key(1), good), good) }, 4096, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			c.spoil()
			alone := []*kvstore.Op{read(1)}
			ch.Do(bg(t), alone)
			ops := []*kvstore.Op{read(9), read(1), read(9)}
			ch.Do(bg(t), ops)
			want(t, ops[0].Err, kvstore.ErrAbsent)
			want(t, ops[2].Err, kvstore.ErrAbsent)
			for _, op := range []*kvstore.Op{alone[0], ops[1]} {
				want(t, op.Err, kvstore.ErrCorrupt)
				found := new(kvstore.CorruptError)
				if !errors.As(op.Err, &found) || found.Length != c.length || found.Mask != 0 != c.block {
					t.Errorf("%v (%+v)", op.Err, found)
				}
				if n, ok := found.Origin(7, key(2).Layer, key(2).Kind, 1000, op.Data); ok != c.origin || ok && n != key(2).Number {
					t.Errorf("origin: %d, %v", n, ok)
				}
			}
		})
	}
	// Corrupt or not, it can be overwritten.
	want(t, do1(t, ch, write(1, kvstore.Present, good)), nil)
	wantBlock(t, ch, 1, good)
}
