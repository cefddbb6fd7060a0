// Command policies compares the hit rates of replacement policies: kvbfs's own
// cache, W-TinyLFU (otter), 2Q and LRU (golang-lru). It is a module of its own so
// that kvbfs does not depend on what it is compared with; nothing builds it but
//
//	cd test/policies && go run . [TRACE...]
//
// Without arguments the trace is zipf 0.9 over 262144 blocks. A trace file has one
// block number per line, in the order in which blocks were read.
package main

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

func main() {
	if len(os.Args) == 1 {
		compare("zipf 0.9", zipf(1<<18, 4_000_000, 0.9))
		return
	}
	for _, name := range os.Args[1:] {
		trace, err := load(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "policies:", err)
			os.Exit(1)
		}
		compare(name, trace)
	}
}

// policy says whether a block was cached, and takes it in as it thinks fit.
type policy interface{ read(block uint64) bool }

// compare prints a line for each size of cache: the share of hits of each policy.
func compare(name string, trace []uint64) {
	blocks := map[uint64]bool{}
	for _, n := range trace {
		blocks[n] = true
	}
	fmt.Printf("%s: %d reads of %d blocks\ncache    kvbfs  tinylfu  2q     lru\n", name, len(trace), len(blocks))
	for _, part := range []int{100, 20, 10, 4} {
		size := max(len(blocks)/part, 16)
		fmt.Printf("1/%-5d", part)
		for _, p := range []policy{newOwn(size), newTinyLFU(size), newTwoQueues(size), newLRU(size)} {
			hits := 0
			for _, n := range trace {
				if p.read(n) {
					hits++
				}
			}
			fmt.Printf("  %.3f", float64(hits)/float64(len(trace)))
		}
		fmt.Println()
	}
}

// zipf draws n blocks out of span; the block of rank k has the weight k^-s.
func zipf(span, n int, s float64) []uint64 {
	rng := rand.New(rand.NewPCG(1, 2))
	sum, cumulated, place := 0.0, make([]float64, span), rng.Perm(span)
	for i := range cumulated {
		sum += math.Pow(float64(i+1), -s)
		cumulated[i] = sum
	}
	trace := make([]uint64, n)
	for i := range trace {
		u := rng.Float64() * sum
		low, high := 0, span-1
		for low < high {
			if mid := (low + high) / 2; cumulated[mid] < u {
				low = mid + 1
			} else {
				high = mid
			}
		}
		trace[i] = uint64(place[low])
	}
	return trace
}

func load(name string) ([]uint64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var trace []uint64
	for in := bufio.NewScanner(f); in.Scan(); {
		n, err := strconv.ParseUint(strings.TrimSpace(in.Text()), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		trace = append(trace, n)
	}
	return trace, nil
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

func (o *own) read(block uint64) bool {
	o.op[0].Key.Number = block
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
func (nothing) Channel(context.Context) (kvstore.Channel, error) {
	return nothingChannel{}, nil
}

type nothingChannel struct{ kvstore.Channel }

func (nothingChannel) Do(_ context.Context, ops []*kvstore.Op) {
	for _, op := range ops {
		op.Err = nil
	}
}
