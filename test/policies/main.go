// Command policies compares the hit rates of replacement policies: kvbfs's own
// cache, W-TinyLFU (otter 2), S3-FIFO (otter 1), ARC, 2Q and LRU (golang-lru), and
// CLOCK. It is a module of its own so that kvbfs does not depend on what it is
// compared with; nothing builds it but
//
//	cd test/policies && go run . [TRACE...]
//
// Without arguments the traces are zipf 0.9 over 262144 blocks, made here, and those
// in traces, which record.sh recorded (kvstore/trace). A hit is a read of a cached
// block. What is read and not cached is offered to the policy; a write changes a
// block in its place if it is cached, as kvbfs's cache does, and no policy is told.
package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/golang-lru/arc/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	s3fifo "github.com/maypok86/otter"
	"github.com/maypok86/otter/v2"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"github.com/kvbfs/kvbfs/kvstore/trace"
)

func main() {
	names := os.Args[1:]
	if len(names) == 0 {
		compare("zipf 0.9", zipf(1<<18, 4_000_000, 0.9))
		compare("zipf 0.9 of cache.TestHitRate", zipf(1<<15, 200_000, 0.9))
		names, _ = filepath.Glob("traces/*.trace") // the pattern is well-formed
	}
	for _, name := range names {
		accesses, err := load(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "policies:", err)
			os.Exit(1)
		}
		compare(strings.TrimSuffix(filepath.Base(name), ".trace"), accesses)
	}
}

// policy says whether a block was cached, and takes it in as it thinks fit.
type policy interface{ read(block uint64) bool }

// policies are what is compared, by the number of blocks that each may have.
var policies = []struct {
	name string
	make func(blocks int) policy
}{
	{"kvbfs", newOwn}, {"w-tinylfu", newTinyLFU}, {"s3-fifo", newS3FIFO}, {"arc", newARC}, {"2q", newTwoQueues}, {"clock", newClock}, {"lru", newLRU},
}

// compare prints a line for each size of cache: the share of hits of each policy.
func compare(name string, accesses []trace.Access) {
	blocks, reads := map[uint64]bool{}, 0
	for _, a := range accesses {
		if !a.Write {
			blocks[a.Number] = true
			reads++
		}
	}
	fmt.Printf("%s: %d reads of %d blocks, %d writes\n%-7s", name, reads, len(blocks), len(accesses)-reads, "cache")
	for _, p := range policies {
		fmt.Printf("  %9s", p.name)
	}
	fmt.Println()
	for _, part := range []int{100, 20, 10, 4} {
		fmt.Printf("1/%-5d", part)
		for _, p := range policies {
			fmt.Printf("  %9.3f", float64(play(p.make(max(len(blocks)/part, 16)), accesses))/float64(reads))
		}
		fmt.Println()
	}
}

// play counts the hits.
func play(p policy, accesses []trace.Access) (hits int) {
	o, _ := p.(*own)
	for _, a := range accesses {
		switch {
		case !a.Write:
			if p.read(a.Number) {
				hits++
			}
		case o != nil:
			o.write(a.Number)
		}
	}
	return hits
}

// zipf draws n blocks out of span; the block of rank k has the weight k^-s.
func zipf(span, n int, s float64) []trace.Access {
	rng := rand.New(rand.NewPCG(1, 2))
	sum, cumulated, place := 0.0, make([]float64, span), rng.Perm(span)
	for i := range cumulated {
		sum += math.Pow(float64(i+1), -s)
		cumulated[i] = sum
	}
	out := make([]trace.Access, n)
	for i := range out {
		u := rng.Float64() * sum
		low, high := 0, span-1
		for low < high {
			if mid := (low + high) / 2; cumulated[mid] < u {
				low = mid + 1
			} else {
				high = mid
			}
		}
		out[i].Number = uint64(place[low])
	}
	return out
}

func load(name string) ([]trace.Access, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	accesses, err := trace.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return accesses, nil
}

type own struct {
	s    *cache.Store
	ch   kvstore.Channel
	op   [1]*kvstore.Op
	hits uint64
}

func newOwn(blocks int) policy {
	// 16 blocks and their places take 66048 bytes.
	s, err := cache.Wrap(nothing{}, cache.Config{Size: int64(blocks) / 16 * 66048})
	if err == nil {
		err = s.Join(storetest.Place(1))
	}
	if err != nil {
		panic(err)
	}
	s.Opened(1)
	ch, _ := s.Channel(context.Background())
	op := &kvstore.Op{Code: kvstore.Read, Reader: 1, Key: kvstore.Key{Layer: 1}, Data: make([]byte, kvstore.BlockSize)}
	return &own{s: s, ch: ch, op: [1]*kvstore.Op{op}}
}

func (o *own) write(block uint64) {
	o.op[0].Code, o.op[0].Key.Number = kvstore.Write, block
	o.ch.Do(context.Background(), o.op[:])
}

func (o *own) read(block uint64) bool {
	o.op[0].Code, o.op[0].Key.Number = kvstore.Read, block
	o.ch.Do(context.Background(), o.op[:])
	before := o.hits
	o.hits = o.s.Stats().Hits
	return o.hits > before
}

type tinyLFU struct {
	c *otter.Cache[uint64, struct{}]
}

func newTinyLFU(blocks int) policy {
	return tinyLFU{otter.Must(&otter.Options[uint64, struct{}]{MaximumSize: blocks, Executor: func(f func()) { f() }})}
}

func (p tinyLFU) read(block uint64) bool {
	_, ok := p.c.GetIfPresent(block)
	if !ok {
		p.c.Set(block, struct{}{})
	}
	return ok
}

type s3FIFO struct {
	c s3fifo.Cache[uint64, struct{}]
}

func newS3FIFO(blocks int) policy {
	c, err := s3fifo.MustBuilder[uint64, struct{}](blocks).Build()
	if err != nil {
		panic(err)
	}
	return s3FIFO{c}
}

func (p s3FIFO) read(block uint64) bool {
	_, ok := p.c.Get(block)
	if !ok {
		p.c.Set(block, struct{}{})
	}
	return ok
}

// clock is the textbook's: one bit per block, and a hand.
type clock struct {
	at     map[uint64]int
	blocks []uint64
	used   []bool
	hand   int
}

func newClock(blocks int) policy {
	return &clock{at: map[uint64]int{}, blocks: make([]uint64, 0, blocks), used: make([]bool, blocks)}
}

func (c *clock) read(block uint64) bool {
	if i, ok := c.at[block]; ok {
		c.used[i] = true
		return true
	}
	if len(c.blocks) < cap(c.blocks) {
		c.at[block] = len(c.blocks)
		c.blocks = append(c.blocks, block)
		return false
	}
	for c.used[c.hand] {
		c.used[c.hand] = false
		c.hand = (c.hand + 1) % len(c.blocks)
	}
	delete(c.at, c.blocks[c.hand])
	c.at[block], c.blocks[c.hand] = c.hand, block
	c.hand = (c.hand + 1) % len(c.blocks)
	return false
}

// ordered is what the caches of golang-lru have in common.
type ordered interface {
	Get(uint64) (struct{}, bool)
}

type listed struct {
	ordered
	add func(block uint64)
}

func newLRU(blocks int) policy {
	c, err := lru.New[uint64, struct{}](blocks)
	if err != nil {
		panic(err)
	}
	return listed{c, func(n uint64) { c.Add(n, struct{}{}) }}
}

func newTwoQueues(blocks int) policy {
	c, err := lru.New2Q[uint64, struct{}](blocks)
	if err != nil {
		panic(err)
	}
	return listed{c, func(n uint64) { c.Add(n, struct{}{}) }}
}

func newARC(blocks int) policy {
	c, err := arc.NewARC[uint64, struct{}](blocks)
	if err != nil {
		panic(err)
	}
	return listed{c, func(n uint64) { c.Add(n, struct{}{}) }}
}

func (p listed) read(block uint64) bool {
	_, ok := p.Get(block)
	if !ok {
		p.add(block)
	}
	return ok
}

// nothing is a store that answers every read at once.
type nothing struct{ kvstore.Store }

func (nothing) Join(kvstore.Placement) error { return nil }
func (nothing) Servers() []string            { return []string{"nowhere"} }
func (nothing) Rewinds() uint64              { return 0 }
func (nothing) Haunted(kvstore.Key) bool     { return false }
func (nothing) Channel(context.Context) (kvstore.Channel, error) {
	return nothingChannel{}, nil
}

type nothingChannel struct{ kvstore.Channel }

func (nothingChannel) Do(_ context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		op.Err = nil
	}
}
