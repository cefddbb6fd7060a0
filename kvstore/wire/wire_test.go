package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// TestQueue compares with a slice.
func TestQueue(t *testing.T) {
	rnd := rand.New(rand.NewPCG(storetest.Seed(t.Logf), 0))
	var q Queue[int]
	var model []int
	for i := range 20000 {
		switch n := rnd.IntN(20); {
		case n < 9:
			q.Push(i)
			model = append(model, i)
		case n < 17 && len(model) > 0:
			if q.Front() != model[0] || q.Pop() != model[0] {
				t.Fatalf("step %d: the first is not %d", i, model[0])
			}
			model = model[1:]
		case n == 17:
			q.PushFront([]int{i, i + 1})
			model = append([]int{i, i + 1}, model...)
		case n == 18 && rnd.IntN(50) == 0:
			q.Clear()
			model = nil
		case n == 19 && rnd.IntN(50) == 0:
			if rest := q.Take(); !slices.Equal(rest, model) {
				t.Fatalf("step %d: took %v, want %v", i, rest, model)
			}
			model = nil
		}
		if q.Len() != len(model) || !slices.Equal(q.Rest(), model) {
			t.Fatalf("step %d: %v, want %v", i, q.Rest(), model)
		}
	}
}

func TestBackoff(t *testing.T) {
	if d := Backoff(0, Jitter); d != 0 {
		t.Errorf("the first retry waits %v", d)
	}
	for n, longest := range []time.Duration{10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond} {
		none := func(time.Duration) time.Duration { return 0 }
		all := func(limit time.Duration) time.Duration { return limit }
		if a, b := Backoff(n+1, none), Backoff(n+1, all); a != longest/2 || b != longest {
			t.Errorf("after %d failures: %v to %v, want %v to %v", n+1, a, b, longest/2, longest)
		}
	}
	for n := range 200 {
		if d := Backoff(n, Jitter); d < 0 || d > time.Second {
			t.Errorf("after %d failures: %v", n, d)
		}
	}
}

// TestHelpers: a panic is contained, and logged with the server's name; all end together.
func TestHelpers(t *testing.T) {
	var mu sync.Mutex
	var log []string
	h := NewHelpers(func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, fmt.Sprintf(format, args...))
	})
	h.For("memcached 192.0.2.1:11211").Go(func(context.Context) { panic("planted") })
	ended := false
	h.For("memcached 192.0.2.2:11211").Go(func(ctx context.Context) { <-ctx.Done(); ended = true })
	h.Close()
	if len(log) != 1 || !strings.Contains(log[0], "192.0.2.1:11211") {
		t.Errorf("logged of a panic: %q", log)
	}
	if !ended {
		t.Error("a server's helpers did not end with the others")
	}
}

// TestElsewhere: an answer elsewhere counts after a second, silence is asked again.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHelpers(t.Logf)
		defer h.Close()
		asked, alive := 0, false
		live := func(context.Context) bool { asked++; return alive }
		var e Elsewhere
		look := func() bool { synctest.Wait(); defer synctest.Wait(); return e.Answers(time.Now(), h, live) }
		if first := look(); first || look() || asked != 1 {
			t.Fatalf("asked %d times at once", asked)
		}
		time.Sleep(2 * time.Second)
		if look() || asked != 2 {
			t.Fatalf("a dead server was asked %d times in two seconds", asked)
		}
		alive = true
		time.Sleep(2 * time.Second)
		if first := look(); first || look() || asked != 3 {
			t.Fatalf("it counts before the silent connection had its second (asked %d times)", asked)
		}
		time.Sleep(2 * time.Second)
		if !look() {
			t.Error("it answers elsewhere, and the silent connection is kept")
		}
	})
}

// TestDrain: a server that answers and never lets go is not waited for without end; one
// that does not answer is.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHelpers(t.Logf)
		var holds Holds
		unproven := 0
		var has, answers bool
		begin := func() *Drain {
			d := StartDrain(h, func(context.Context) (bool, bool) { return has, answers }, func() { unproven++ })
			holds.Until(h, d)
			synctest.Wait()
			return d
		}
		has, answers = true, true
		d := begin()
		if d.Done() || !holds.Any() {
			t.Error("over while the server has the connection")
		}
		time.Sleep(2 * DrainLimit)
		synctest.Wait()
		if !d.Done() || holds.Any() || unproven != 1 {
			t.Errorf("done %v, held %v, unproven %d after the limit", d.Done(), holds.Any(), unproven)
		}
		has = false
		if d = begin(); !d.Done() || unproven != 1 {
			t.Error("not over though the server let go")
		}
		answers = false
		d = begin()
		time.Sleep(10 * DrainLimit)
		if d.Done() {
			t.Error("over though the server never answered")
		}
		h.Close()
		if !d.Done() {
			t.Error("not over after Close")
		}
	})
}

func TestAddress(t *testing.T) {
	var a Address
	if err := a.Lookup(context.Background(), "/run/x.sock"); err != nil || a.Network != "unix" {
		t.Errorf("a path: %q, %v", a.Network, err)
	}
	if err := a.Lookup(context.Background(), "127.0.0.1:7"); err != nil || a.Network != "tcp" || a.At.Load() == nil {
		t.Errorf("an address: %q, %v", a.Network, err)
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.1:x", "no such host:1"} {
		if err := a.Lookup(context.Background(), bad); !errors.Is(err, kvstore.ErrUnreachable) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
