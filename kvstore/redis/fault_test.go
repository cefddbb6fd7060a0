package redis

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
)

// TestFlushFindsFlushAll: a neighbour's FLUSHALL breaks no connection.
func TestFlushFindsFlushAll(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Config{}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	want(t, do1(t, ch, write(1, kvstore.Present, block(2))), nil)
	server.Do("FLUSHALL")
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	want(t, other.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

// stored is a block as Redis holds it.
func stored(k kvstore.Key, seed uint32, data []byte) []byte {
	var end [trailer]byte
	putTrailer(end[:], kvstore.Checksum(seed, k, data), 1)
	return append(append([]byte(nil), data...), end[:]...)
}

func TestCorruptBlocks(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, Config{}, server)
	ch := channelOf(t, s)
	set := func(value []byte) { t.Helper(); server.Do("SET", blockKey(key(1)), value) }
	good := block(1)
	value := stored(key(1), 7, good)
	for name, spoil := range map[string]func(){
		"short":      func() { set(value[:4000]) },
		"one short":  func() { set(value[:valueSize-1]) },
		"empty":      func() { set(nil) },
		"long":       func() { set(append(append([]byte(nil), value...), 1)) },
		"very long":  func() { set(make([]byte, 900<<10)) },
		"no sum":     func() { set(append(append([]byte(nil), good...), make([]byte, trailer)...)) },
		"other data": func() { set(append(block(2), value[kvstore.BlockSize:]...)) },
		"swapped":    func() { set(stored(key(2), 7, good)) },
		"other seed": func() { set(stored(key(1), 8, good)) },
		"a list":     func() { server.Do("DEL", blockKey(key(1))); server.Do("RPUSH", blockKey(key(1)), "x") },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			ops := []*kvstore.Op{read(9), read(1), read(9)}
			ch.Do(bg(t), ops)
			want(t, ops[0].Err, kvstore.ErrAbsent)
			want(t, ops[1].Err, kvstore.ErrCorrupt)
			want(t, ops[2].Err, kvstore.ErrAbsent)
		})
	}
	// Corrupt or not, it can be overwritten.
	want(t, do1(t, ch, write(1, kvstore.Present, good)), nil)
	wantBlock(t, ch, 1, good)
}
