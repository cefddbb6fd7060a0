package rig

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

// single is a placement on one server without a sentinel.
type single struct{}

func (single) Server(kvstore.Key) int        { return 0 }
func (single) Sentinel(int) (string, []byte) { return "", nil }

// blocksOver writes, overwrites and discards blocks over a wire and reads what is
// left; all must succeed.
func blocksOver(t *testing.T, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := memcached.Open(ctx, memcached.Config{Servers: []string{addr}, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := st.Join(single{}); err != nil {
		t.Fatal(err)
	}
	ch, err := st.Channel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	do := func(code kvstore.Code, n, version uint64) *kvstore.Op {
		op := &kvstore.Op{Code: code, Key: kvstore.Key{Layer: 9, Number: n}, Seed: 3}
		if code != kvstore.Discard {
			op.Data = make([]byte, kvstore.BlockSize)
		}
		if code == kvstore.Write {
			Stamp(op.Data, int64(n), version)
		}
		ch.Do(ctx, []*kvstore.Op{op})
		return op
	}
	want := make([]byte, kvstore.BlockSize)
	for version := range uint64(12) {
		for n := range uint64(24) {
			if op := do(kvstore.Write, n, version+1); op.Err != nil {
				t.Fatal(op.Err)
			}
			Stamp(want, int64(n), version+1)
			if op := do(kvstore.Read, n, 0); op.Err != nil || !bytes.Equal(op.Data, want) {
				t.Fatalf("block %d: %v, or not version %d", n, op.Err, version+1)
			}
		}
	}
	if op := do(kvstore.Discard, 5, 0); op.Err != nil {
		t.Fatal(op.Err)
	}
}

// bare is a rig for servers only: no daemon is built.
func bare(t *testing.T) *Rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "kvbfs-wire-") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{T: t, Dir: dir}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return r
}

// TestChaos: each kind of bad wire is passable, and the ones that end connections do.
func TestChaos(t *testing.T) {
	seed := Seed(t)
	for name, line := range map[string]Line{
		"resets": {ResetIn: 100_000}, "cuts": {ResetIn: 30_000, Slice: 2000}, "slices": {Slice: 200},
		"latency": {Delay: time.Millisecond}, "slow": {Rate: 8 << 20}, "garbage": {Garbage: 60_000},
	} {
		t.Run(name, func(t *testing.T) {
			r := bare(t)
			srv := r.MemcachedTCP(64)
			t.Cleanup(srv.Kill)
			wire := NewChaos(t, srv.Addr, line, seed)
			blocksOver(t, wire.Addr)
			if (line.ResetIn+line.Garbage > 0) != (wire.Faults() > 0) {
				t.Errorf("%d connections were ended", wire.Faults())
			}
		})
	}
}

// TestRecorder: a server that is loaded with a log is the server that the log is of.
func TestRecorder(t *testing.T) {
	r := bare(t)
	first, second := r.Memcached(64), r.Memcached(64)
	t.Cleanup(first.Kill)
	t.Cleanup(second.Kill)
	rec := r.Record(first)
	blocksOver(t, rec.Addr)
	log := rec.Log()
	if len(log) < 12*24 || rec.Position() != len(log) {
		t.Fatalf("%d changes in the log", len(log))
	}
	second.Load(log)
	keys := map[string]bool{}
	for _, c := range log {
		keys[c.Key] = true
	}
	for key := range keys {
		a, b := first.Ask("get "+key), second.Ask("get "+key)
		if len(a) != len(b) || len(a) > 0 && (a[0] != b[0] || a[1] != b[1]) {
			t.Errorf("%s differs", key)
		}
	}
	// Half of the log is an older server: the last version of a block is not there.
	third := r.Memcached(64)
	t.Cleanup(third.Kill)
	third.Load(log[:len(log)/2])
	for _, c := range log[len(log)-1:] {
		if !c.Record && c.Value == nil && len(third.Ask("get "+c.Key)) == 0 {
			t.Error("a block that was discarded last is not in the first half of the log")
		}
	}
}
