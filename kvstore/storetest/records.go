package storetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/kvbfs/kvbfs/kvstore"
)

// name makes a record name that no other test uses.
func (b *bench) name(s string) string { return fmt.Sprintf("storetest:%016x:%s", rand.Uint64(), s) }

// records: add, get, swap, delete, on each server apart.
func (b *bench) records() {
	c, ctx := b.st.Control(), b.ctx
	name := b.name("a/b.c_d-e:F")
	for n := range b.st.Servers() {
		_, err := c.Get(ctx, n, name)
		b.is(err, kvstore.ErrAbsent, "get of nothing")
		b.is(c.Swap(ctx, n, name, kvstore.Record{Version: 1}, nil), kvstore.ErrAbsent, "swap of nothing")
		b.is(c.Delete(ctx, n, name), nil, "delete of nothing")

		value := []byte{byte(n), 1, 0, '\r', '\n', 255}
		b.must(c.Add(ctx, n, name, value))
		b.is(c.Add(ctx, n, name, nil), kvstore.ErrExists, "second add")
		first, err := c.Get(ctx, n, name)
		b.must(err)
		if !bytes.Equal(first.Value, value) {
			b.t.Fatalf("added %q, got %q", value, first.Value)
		}
		value[1] = 2
		b.must(c.Swap(ctx, n, name, first, value))
		value[1] = 77 // the store kept no reference
		b.is(c.Swap(ctx, n, name, first, value), kvstore.ErrConflict, "swap with an old version")
		second, err := c.Get(ctx, n, name)
		b.must(err)
		if second.Value[1] != 2 {
			b.t.Fatalf("swapped, got %q", second.Value)
		}
		second.Value[1] = 78 // the value is the caller's
		b.must(c.Swap(ctx, n, name, second, []byte{byte(n)}))
		third, err := c.Get(ctx, n, name)
		b.must(err)
		b.must(c.Delete(ctx, n, name))
		b.is(c.Swap(ctx, n, name, third, nil), kvstore.ErrAbsent, "swap of what was deleted")
		b.must(c.Add(ctx, n, name, []byte{byte(n)}))
		b.is(c.Swap(ctx, n, name, third, nil), kvstore.ErrConflict, "swap of what was deleted and added")
	}
	for n := range b.st.Servers() { // each server has its own
		rec, err := c.Get(ctx, n, name)
		b.must(err)
		if !bytes.Equal(rec.Value, []byte{byte(n)}) {
			b.t.Errorf("server %d holds %q", n, rec.Value)
		}
	}
	b.recordLimits(c)
}

// recordLimits: sizes and names at the edge.
func (b *bench) recordLimits(c kvstore.Control) {
	ctx := b.ctx
	for _, size := range []int{0, 1, kvstore.BlockSize, kvstore.MaxRecord} {
		name, value := b.name("size"), make([]byte, size)
		for i := range value {
			value[i] = byte(i * 7)
		}
		b.must(c.Add(ctx, 0, name, value))
		rec, err := c.Get(ctx, 0, name)
		b.must(err)
		if !bytes.Equal(rec.Value, value) {
			b.t.Errorf("a record of %d bytes came back as %d others", size, len(rec.Value))
		}
		b.must(c.Swap(ctx, 0, name, rec, value[:size/2]))
		b.must(c.Delete(ctx, 0, name))
	}
	b.is(c.Add(ctx, 0, b.name("large"), make([]byte, kvstore.MaxRecord+1)), kvstore.ErrInvalid, "record that is too large")
	// Names that a protocol could misread are refused, or kept apart.
	for _, odd := range []string{"", " ", "\r\n", "\x00", strings.Repeat("x", 300)} {
		name, text := b.name(odd), []byte("odd")
		if odd == "" {
			name = ""
		}
		err := c.Add(ctx, 0, name, text)
		if errors.Is(err, kvstore.ErrInvalid) {
			continue
		}
		b.is(err, nil, "record named %.40q", name)
		rec, err := c.Get(ctx, 0, name)
		if err != nil || !bytes.Equal(rec.Value, text) {
			b.t.Errorf("record named %.40q: %q, %v", name, rec.Value, err)
		}
		b.must(c.Delete(ctx, 0, name))
	}
	if !errors.Is(c.Add(ctx, len(b.st.Servers()), b.name("server"), nil), kvstore.ErrInvalid) {
		b.t.Error("a server that does not exist took a record")
	}
	// Names that a file system could misread.
	names := []string{"../" + b.name("up"), "." + b.name("hidden"), b.name("UP"), b.name("%41"), b.name("A"), b.name("a/b")}
	for i, name := range names {
		b.must(c.Add(ctx, 0, name, []byte{byte(i)}))
	}
	for i, name := range names {
		rec, err := c.Get(ctx, 0, name)
		b.must(err)
		if len(rec.Value) != 1 || rec.Value[0] != byte(i) {
			b.t.Errorf("record %q holds %q", name, rec.Value)
		}
		b.must(c.Delete(ctx, 0, name))
	}
}

// recordRaces: of many adds one wins, and a counter that many raise by
// compare-and-swap misses nothing.
func (b *bench) recordRaces() {
	const workers, rounds = 6, 15
	c, name := b.st.Control(), b.name("counter")
	var wg sync.WaitGroup
	var mu sync.Mutex // guards created
	created := 0
	for range workers {
		wg.Go(func() {
			switch err := c.Add(b.ctx, 0, name, make([]byte, 8)); {
			case err == nil:
				mu.Lock()
				created++
				mu.Unlock()
			case !errors.Is(err, kvstore.ErrExists):
				b.t.Errorf("add: %v", err)
			}
			for done := 0; done < rounds; {
				old, err := c.Get(b.ctx, 0, name)
				if err != nil {
					b.t.Errorf("get: %v", err)
					return
				}
				next := binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(old.Value)+1)
				switch err := c.Swap(b.ctx, 0, name, old, next); {
				case err == nil:
					done++
				case !errors.Is(err, kvstore.ErrConflict):
					b.t.Errorf("swap: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if created != 1 {
		b.t.Errorf("%d adds of one record succeeded", created)
	}
	rec, err := c.Get(b.ctx, 0, name)
	b.must(err)
	if n := binary.BigEndian.Uint64(rec.Value); n != workers*rounds {
		b.t.Errorf("counter is %d after %d swaps", n, workers*rounds)
	}
}
