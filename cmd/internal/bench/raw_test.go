package bench

import (
	"bufio"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/result"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
)

// TestRawStore: every raw work does something, and nothing stays on the server but
// the claim of the layer.
func TestRawStore(t *testing.T) {
	srv := memcachedtest.Start(t, memcachedtest.TCP())
	const size = 8 << 20
	// The store keeps some items of its own, from its first use on.
	first, err := openRaw(t.Context(), srv.URL(), size)
	if err == nil {
		err = first.close(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	before := items(t, srv.Addr())
	r, err := openRaw(t.Context(), srv.URL(), size)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range append(rawWorks(2, false), result.Work{Kind: "set", Block: block4k, Depth: 8, Jobs: 4}) {
		s, n, err := r.measure(t.Context(), w, 30*time.Millisecond)
		if err != nil || n == 0 || s.IOPS <= 0 || s.P50US <= 0 || s.P99US < s.P50US {
			t.Errorf("%s: %d blocks, %+v: %v", w.Name(), n, s, err)
		}
	}
	if s, n, wrote, err := r.besideWriter(t.Context(), 30*time.Millisecond); err != nil || n == 0 || s.P99US <= 0 || wrote <= 0 {
		t.Errorf("beside a writer: %d reads, %+v, %.0f bytes/s written: %v", n, s, wrote, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, _, err := r.measure(ctx, rawWorks(2, true)[0], time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	p, err := openPlain(srv.URL())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"get", "set"} {
		if s, n, err := p.measure(t.Context(), result.Work{Kind: kind, Block: block4k, Depth: 1, Jobs: 4}, 30*time.Millisecond); err != nil || n == 0 || s.IOPS <= 0 {
			t.Errorf("plain %s: %d, %v", kind, n, err)
		}
	}
	if err := errors.Join(p.close(), r.close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if n := items(t, srv.Addr()); n != before+1 {
		t.Errorf("%d items where there were %d; want one more, the layer's claim", n, before)
	}
}

// items asks a server how many it has.
func items(t *testing.T, addr string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write([]byte("stats\r\n")); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(c); in.Scan() && in.Text() != "END"; {
		if n, ok := strings.CutPrefix(in.Text(), "STAT curr_items "); ok {
			count, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
	}
	t.Fatal("the server does not say how many items it has")
	return 0
}

// TestChoose: no batch has a block twice, and none is outside.
func TestChoose(t *testing.T) {
	r := &rawStore{blocks: 1000}
	place := rand.New(rand.NewPCG(1, 2))
	for _, run := range []int{0, 32} {
		for range 1000 {
			ops := make([]*kvstore.Op, 32)
			for i := range ops {
				ops[i] = &kvstore.Op{}
			}
			r.choose(ops, place, run)
			seen := map[uint64]bool{}
			for i, op := range ops {
				n := op.Key.Number
				if seen[n] || n >= r.blocks || run > 0 && n != ops[0].Key.Number+uint64(i) {
					t.Fatalf("run %d: block %d at %d of %d", run, n, i, len(ops))
				}
				seen[n] = true
			}
		}
	}
}

// TestServer: a private server starts, stops answering, goes on and ends.
func TestServer(t *testing.T) {
	memcachedtest.Start(t) // skips where there is none, but not in CI
	s := place(t)
	srv, err := startServer(t.Context(), s, 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	srv.resume()
	if _, err := srv.ask("version"); err != nil {
		t.Error(err)
	}
	srv.stop()
	if _, err := srv.ask("version"); err == nil {
		t.Error("it answers after its end")
	}
}
