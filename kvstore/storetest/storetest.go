// Package storetest is the conformance suite of kvstore: what the contract
// promises, as tests that every store and every decorator passes. It looks at
// the public contract only; what differs between stores it asks Properties.
//
//	func TestConformance(t *testing.T) {
//		storetest.Run(t, func(t testing.TB, c storetest.Case) storetest.Rig {
//			return storetest.Rig{Store: mystore.New(c.Servers)}
//		})
//	}
//
// # The nouns
//
//   - A case says what store a test needs; a rig is what the store's own test
//     opens for it: the store, and hooks that cause misfortunes.
//   - A bench (type bench) is one test's rig, joined, with a layer of its own.
//
// Layers and record names are random, so that rigs may share a server. Random
// choices come from a seed that is logged; KVBFS_SEED sets it.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Case says what a test needs.
type Case struct {
	// Servers is how many servers the store should have. A rig that offers one
	// only may ignore it.
	Servers int
	// CapacityBlocks, if not 0, asks for a small store: it must be full after
	// about that many blocks of data, at most 64 times as many.
	CapacityBlocks int
}

// Rig is an opened store that nobody has joined yet. The suite closes the store;
// what else the rig holds is cleaned up by the opener through t.Cleanup, which
// runs afterwards. Hooks that are nil are not offered, and their tests skipped.
type Rig struct {
	Store kvstore.Store
	// Skip, if not empty, says why this case is not offered.
	Skip string
	// Empty makes a server lose everything, as a restart or flush_all does.
	Empty func(server int)
	// Corrupt spoils what is stored under a key.
	Corrupt func(k kvstore.Key)
	// Allocates, if not empty, says why the store allocates on the way of success.
	Allocates string
}

// Opener opens a rig. It is called once per test.
type Opener func(t testing.TB, c Case) Rig

// Run runs the whole suite.
func Run(t *testing.T, open Opener) {
	for _, c := range []struct {
		name string
		need Case
		run  func(*bench)
	}{
		{"Lifecycle", Case{Servers: 1}, nil},
		{"ReadWrite", Case{Servers: 3}, (*bench).readWrite},
		{"ResultsPerOperation", Case{Servers: 2}, (*bench).resultsPerOperation},
		{"Absent", Case{Servers: 2}, (*bench).absent},
		{"Expectations", Case{Servers: 2}, (*bench).expectations},
		{"Versions", Case{Servers: 1}, (*bench).versions},
		{"Discard", Case{Servers: 2}, (*bench).discard},
		{"DiscardExtents", Case{Servers: 1}, (*bench).discardExtents},
		{"Kinds", Case{Servers: 2}, (*bench).kinds},
		{"Layers", Case{Servers: 2}, (*bench).layers},
		{"Buffers", Case{Servers: 2}, (*bench).buffers},
		{"LargestBatch", Case{Servers: 3}, (*bench).largestBatch},
		{"Invalid", Case{Servers: 1}, (*bench).invalid},
		{"Fence", Case{Servers: 2}, (*bench).fence},
		{"Context", Case{Servers: 1}, (*bench).contextEnds},
		{"Closed", Case{Servers: 1}, (*bench).closedChannel},
		{"Channels", Case{Servers: 3}, (*bench).channels},
		{"OneBlockManyWriters", Case{Servers: 1}, (*bench).oneBlock},
		{"Flush", Case{Servers: 3}, (*bench).flush},
		{"Presence", Case{Servers: 1}, (*bench).presence},
		{"Records", Case{Servers: 2}, (*bench).records},
		{"RecordRaces", Case{Servers: 1}, (*bench).recordRaces},
		{"Full", Case{Servers: 1, CapacityBlocks: 256}, (*bench).full},
		{"ServerLost", Case{Servers: 2}, (*bench).serverLost},
		{"Corrupt", Case{Servers: 1}, (*bench).corrupt},
		{"Seed", Case{Servers: 1}, (*bench).seed},
		{"Allocations", Case{Servers: 2}, (*bench).allocations},
		{"Model", Case{Servers: 3}, (*bench).model},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.run == nil {
				lifecycle(t, open, c.need)
				return
			}
			c.run(newBench(t, open, c.need))
		})
	}
}

// patience bounds every call to a store: far beyond what a healthy one needs.
const patience = 30 * time.Second

// bench is one test's store, joined, with a layer.
type bench struct {
	t     testing.TB
	ctx   context.Context
	rig   Rig
	st    kvstore.Store
	props kvstore.Properties
	place *Placement
	layer kvstore.LayerID
	crc   uint32 // the layer's seed
	rng   *rand.Rand
	need  Case
}

// newBench opens a rig and joins it with fresh sentinels.
func newBench(t testing.TB, open Opener, need Case) *bench {
	t.Helper()
	rig := open(t, need)
	if rig.Skip != "" {
		t.Skip(rig.Skip)
	}
	seed := chooseSeed(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b := &bench{
		t: t, ctx: ctx, rig: rig, st: rig.Store, props: rig.Store.Properties(), need: need,
		place: Place(len(rig.Store.Servers())),
		rng:   rand.New(rand.NewPCG(seed, 1)),
		crc:   rand.Uint32(),
	}
	t.Cleanup(func() {
		cancel()
		if err := b.st.Close(); err != nil {
			t.Errorf("Close of the store: %v", err)
		}
	})
	b.place.Prove(fmt.Sprintf("storetest:%016x:sentinel", rand.Uint64()))
	for n := range b.st.Servers() {
		name, value := b.place.Sentinel(n)
		b.must(b.st.Control().Add(ctx, n, name, value))
	}
	b.must(b.st.Join(b.place))
	b.layer = b.newLayer()
	return b
}

var lastSeed atomic.Uint64

// chooseSeed is Seed that is logged once for all cases of a suite.
func chooseSeed(t testing.TB) uint64 {
	return Seed(func(format string, args ...any) {
		if _, timed := t.(*testing.B); !timed && lastSeed.Swap(args[0].(uint64)) != args[0] {
			t.Logf(format, args...)
		}
	})
}

// Seed returns the seed of a test's random choices, and logs it: KVBFS_SEED if
// that is set, to run a test again as it was, else a random one.
func Seed(logf func(format string, args ...any)) uint64 {
	seed, err := strconv.ParseUint(os.Getenv("KVBFS_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	logf("KVBFS_SEED=%d", seed)
	return seed
}

// newLayer claims a random layer, never layer 0.
func (b *bench) newLayer() kvstore.LayerID {
	b.t.Helper()
	id := kvstore.LayerID(rand.Uint32() | 1)
	b.must(b.st.CreateLayer(b.ctx, id))
	return id
}

// channel opens a channel that is closed with the test.
func (b *bench) channel() kvstore.Channel {
	b.t.Helper()
	ch, err := b.st.Channel(b.ctx)
	b.must(err)
	b.t.Cleanup(func() {
		if err := ch.Close(); err != nil {
			b.t.Errorf("Close of a channel: %v", err)
		}
	})
	return ch
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// is fails the test unless err is want, which may be nil.
func (b *bench) is(err, want error, what string, args ...any) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Fatalf("%s: got %v, want %v", fmt.Sprintf(what, args...), err, want)
	}
}

func (b *bench) key(n uint64) kvstore.Key { return kvstore.Key{Layer: b.layer, Number: n} }

// readOp reads block n into poisoned memory.
func (b *bench) readOp(n uint64) *kvstore.Op {
	data := make([]byte, kvstore.BlockSize)
	poison(data)
	return &kvstore.Op{Code: kvstore.Read, Key: b.key(n), Seed: b.crc, Data: data, Err: errUntouched}
}

// writeOp writes the content of generation gen to block n.
func (b *bench) writeOp(n, gen uint64) *kvstore.Op {
	op := &kvstore.Op{Code: kvstore.Write, Key: b.key(n), Seed: b.crc, Data: make([]byte, kvstore.BlockSize), Err: errUntouched}
	content(op.Data, op.Key, gen)
	return op
}

func (b *bench) discardOp(n uint64, count uint32) *kvstore.Op {
	return &kvstore.Op{Code: kvstore.Discard, Key: b.key(n), Seed: b.crc, Count: count, Err: errUntouched}
}

// errUntouched stands in every Err before a call: a store must set all of them.
var errUntouched = errors.New("the store did not set Err")

// do executes operations that must all succeed.
func (b *bench) do(ch kvstore.Channel, ops ...*kvstore.Op) {
	b.t.Helper()
	ch.Do(b.ctx, ops)
	for i, op := range ops {
		if op.Err != nil {
			b.t.Fatalf("operation %d of %d (code %d) on %v: %v", i, len(ops), op.Code, op.Key, op.Err)
		}
	}
}

// one executes one operation and returns its result.
func (b *bench) one(ch kvstore.Channel, op *kvstore.Op) error {
	ch.Do(b.ctx, []*kvstore.Op{op})
	return op.Err
}

// holds fails the test unless block n has the content of generation gen.
func (b *bench) holds(ch kvstore.Channel, n, gen uint64) {
	b.t.Helper()
	op := b.readOp(n)
	b.do(ch, op)
	if got, ok := generation(op.Data, op.Key); !ok || got != gen {
		b.t.Fatalf("%v: holds generation %d (whole: %v), want %d", op.Key, got, ok, gen)
	}
}

// gone fails the test unless block n is absent, as the store reports it.
func (b *bench) gone(ch kvstore.Channel, n uint64) {
	b.t.Helper()
	op := b.readOp(n)
	b.isAbsent(op, b.one(ch, op))
}

// isAbsent judges the result of a read of an absent block.
func (b *bench) isAbsent(op *kvstore.Op, err error) {
	b.t.Helper()
	if b.props.ReportsAbsent {
		b.is(err, kvstore.ErrAbsent, "read of absent %v", op.Key)
		return
	}
	b.is(err, nil, "read of absent %v", op.Key)
	for i, c := range op.Data {
		if c != 0 {
			b.t.Fatalf("read of absent %v: byte %d is %#x, want zeros", op.Key, i, c)
		}
	}
}

// stride is how far apart a block's stamps are: a sector, the unit in which
// disks tear.
const stride = 512

// filler is what lies between the stamps, different at each place; poisoned is
// what no test writes.
var filler, poisoned = func() (f, p [kvstore.BlockSize]byte) {
	for i := range f {
		f[i], p[i] = byte(i*7+i>>8), 0xA5
	}
	return f, p
}()

// content fills a block so that each sector tells its key, generation and place:
// a torn, shifted or foreign block is seen. It copies more than it computes,
// because the race detector makes loops over bytes slow.
func content(data []byte, k kvstore.Key, gen uint64) {
	copy(data, filler[:])
	word := mark(k, gen)
	for i := 0; i < len(data); i += stride {
		binary.LittleEndian.PutUint64(data[i:], gen)
		binary.LittleEndian.PutUint64(data[i+8:], word+uint64(i))
	}
}

// generation reads what content wrote; false if it is not one whole block of k.
func generation(data []byte, k kvstore.Key) (uint64, bool) {
	gen := binary.LittleEndian.Uint64(data)
	word := mark(k, gen)
	for i := 0; i < len(data); i += stride {
		if binary.LittleEndian.Uint64(data[i:]) != gen || binary.LittleEndian.Uint64(data[i+8:]) != word+uint64(i) ||
			!bytes.Equal(data[i+16:i+stride], filler[i+16:i+stride]) {
			return gen, false
		}
	}
	return gen, true
}

func mark(k kvstore.Key, gen uint64) uint64 {
	return (k.Number*31+uint64(k.Layer)*17+uint64(k.Kind)*7+gen)*0x9E3779B97F4A7C15 | 1
}

// poison fills a block with what no test writes.
func poison(data []byte) { copy(data, poisoned[:]) }
