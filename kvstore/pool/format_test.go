package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

func TestSimultaneousFormatsMakeOnePool(t *testing.T) {
	for round := range 20 {
		st := mem.New(mem.Config{Servers: 3})
		var wg sync.WaitGroup
		pools := make([]*Pool, 8)
		for i := range pools {
			r := newRig(st, "c:1", "a:1", "b:1")
			if i%2 == 1 { // the URL in another order
				r.addresses, r.order = []string{"b:1", "c:1", "a:1"}, []int{2, 0, 1}
			}
			pools[i] = open(t, r, Options{})
			wg.Go(func() {
				if _, err := pools[i].CreateVolume(t.Context(), fmt.Sprintf("v%d", i), 4096, 1); err != nil {
					t.Error(err)
				}
				if r.joins != 1 {
					t.Errorf("joined %d times", r.joins)
				}
			})
		}
		wg.Wait()
		for _, p := range pools {
			if p.UUID() != pools[0].UUID() || p.UUID() == [16]byte{} {
				t.Fatalf("round %d: several pools", round)
			}
			if err := p.CheckSentinels(t.Context()); err != nil {
				t.Fatal(err)
			}
			for n := range uint64(100) {
				k := kvstore.Key{Layer: 9, Number: n * 32}
				if p.servers[p.Server(k)] != pools[0].servers[pools[0].Server(k)] {
					t.Fatal("the order of the URL moves blocks")
				}
			}
		}
		if list, err := pools[0].Volumes(t.Context()); err != nil || len(list) != len(pools) {
			t.Fatal(len(list), err)
		}
	}
}

func TestRefreshFindsAPool(t *testing.T) {
	st := mem.New(mem.Config{Servers: 2})
	r := newRig(st)
	early := open(t, r, Options{})
	wantErr(t, early.CheckSentinels(t.Context()), ErrNoPool)
	makeReady(t, open(t, st, Options{}), "v")
	if _, err := early.Volume(t.Context(), "v"); err != nil {
		t.Fatal(err)
	}
	if err := early.Refresh(t.Context()); err != nil || !early.Formatted() || r.joins != 1 {
		t.Fatal(err, early.Formatted(), r.joins)
	}
}

func TestOtherServers(t *testing.T) {
	st := mem.New(mem.Config{Servers: 3})
	makeReady(t, open(t, newRig(st, "a:1", "b:1"), Options{}), "v")
	for _, addresses := range [][]string{{"a:1"}, {"a:1", "c:1"}, {"a:1", "b:1", "c:1"}} {
		_, err := Open(t.Context(), newRig(st, addresses...), Options{URL: "test://" + strings.Join(addresses, ",")})
		wantErr(t, err, ErrOtherServers)
		for _, name := range append(addresses, "a:1, b:1") {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("the message does not name %s", name)
			}
		}
	}
	// One server under another name is proven by its sentinel.
	one := mem.New(mem.Config{})
	makeReady(t, open(t, newRig(one, "localhost:1"), Options{}), "v")
	open(t, newRig(one, "127.0.0.1:1"), Options{})
	// Two pools under one URL.
	two := mem.New(mem.Config{Servers: 2})
	makeReady(t, open(t, newRig(two, "a:1"), Options{}), "v")
	r := newRig(two, "b:1")
	r.order = []int{1}
	makeReady(t, open(t, r, Options{}), "v")
	_, err := Open(t.Context(), newRig(two, "a:1", "b:1"), Options{})
	wantErr(t, err, ErrOtherServers)
}

func TestTwoNamesAreTwoPools(t *testing.T) {
	st := mem.New(mem.Config{})
	makeReady(t, open(t, newRig(st), Options{Name: "x"}), "v")
	y := open(t, newRig(st), Options{Name: "y"})
	if y.Formatted() {
		t.Fatal("pool y is there already")
	}
	_, err := Open(t.Context(), st, Options{Name: "a b"})
	wantErr(t, err, ErrBadName)
}

func TestForgottenPools(t *testing.T) {
	const servers = 3
	for _, c := range []struct {
		what  string
		names string // what the message must name
		do    func(st *mem.Store)
	}{
		{"all emptied", "a:1, b:1, c:1", func(st *mem.Store) { st.Forget(0); st.Forget(1); st.Forget(2) }},
		{"master emptied", "a:1", func(st *mem.Store) { st.Forget(0) }},
		{"another one emptied", "c:1", func(st *mem.Store) { st.Forget(2) }},
		{"pool made anew by somebody else", "is there now", func(st *mem.Store) {
			st.Forget(0)
			st.Forget(1)
			st.Forget(2)
			makeReady(t, open(t, newRig(st, "a:1", "b:1", "c:1"), Options{}), "v")
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			st := mem.New(mem.Config{Servers: servers})
			opt := Options{URL: "test://abc", StateDir: t.TempDir()}
			r := newRig(st, "a:1", "b:1", "c:1")
			makeReady(t, open(t, r, opt), "v")
			open(t, newRig(st, "a:1", "b:1", "c:1"), opt)
			c.do(st)
			again := newRig(st, "a:1", "b:1", "c:1")
			_, err := Open(t.Context(), again, opt)
			wantErr(t, err, ErrForgotten)
			if !strings.Contains(err.Error(), c.names) || again.joins != 0 {
				t.Errorf("joined %d times; the message must name %s", again.joins, c.names)
			}
			// Consent on a store that is wholly new is enough to go on.
			known, others, err := Forget(opt.StateDir, "test://other")
			if err != nil || known || !slices.Equal(others, []string{opt.URL}) {
				t.Fatalf("what is not remembered is forgotten: %v, %q, %v", known, others, err)
			}
			_, err = Open(t.Context(), again, opt)
			wantErr(t, err, ErrForgotten)
			if known, _, err := Forget(opt.StateDir, opt.URL); err != nil || !known {
				t.Fatal(known, err)
			}
			_, err = Open(t.Context(), again, opt)
			if partly := strings.HasSuffix(c.what, " emptied") && c.what != "all emptied"; partly != errors.Is(err, ErrForgotten) {
				t.Fatal(err)
			}
		})
	}
}

// A lost sentinel is seen also by who remembers nothing.
func TestLostSentinelWithoutMemory(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 2})
	p := open(t, st, Options{})
	makeReady(t, p, "v")
	st.Forget(1)
	err := p.CheckSentinels(ctx)
	wantErr(t, err, kvstore.ErrServerLost)
	var op *kvstore.OpError
	if !errors.As(err, &op) || op.Server != st.Servers()[1] {
		t.Error("the error does not name the server")
	}
	_, err = Open(ctx, st, Options{})
	wantErr(t, err, ErrForgotten)
}

func TestMemoryIsMadeOnFirstSight(t *testing.T) {
	st := mem.New(mem.Config{})
	makeReady(t, open(t, newRig(st), Options{}), "v")
	opt := Options{URL: "test://x", StateDir: t.TempDir()}
	open(t, newRig(st), opt)
	files, _ := filepath.Glob(filepath.Join(opt.StateDir, "pools", "*.json"))
	if len(files) != 1 {
		t.Fatal(files)
	}
	if fi, err := os.Stat(files[0]); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatal(fi.Mode(), err)
	}
	if err := os.WriteFile(files[0], []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), newRig(st), opt); err == nil || !strings.Contains(err.Error(), files[0]) {
		t.Fatal("a damaged memory passes or is not named:", err)
	}
	if known, _, err := Forget(filepath.Join(opt.StateDir, "none"), "x"); err != nil || known {
		t.Fatal(known, err)
	}
}

func TestLostPoolRecordIsPutBack(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 2})
	p := open(t, st, Options{})
	makeReady(t, p, "v")
	for _, name := range []string{p.poolName(), p.catalogueName()} {
		if err := st.Control().Delete(ctx, 0, name); err != nil {
			t.Fatal(err)
		}
	}
	q := open(t, st, Options{})
	if v, err := q.Volume(ctx, "v"); err != nil || v.State != Ready || q.UUID() != p.UUID() {
		t.Fatal(v, err)
	}
	if _, err := st.Control().Get(ctx, 0, p.poolName()); err != nil {
		t.Fatal(err)
	}
	// On a single server nothing can put it back, and a new pool would hide volumes.
	one := mem.New(mem.Config{})
	makeReady(t, open(t, one, Options{}), "v")
	if err := one.Control().Delete(ctx, 0, p.poolName()); err != nil {
		t.Fatal(err)
	}
	_, err := open(t, one, Options{}).CreateVolume(ctx, "w", 4096, 1)
	wantErr(t, err, ErrForgotten)
}

func TestSlotsAreEven(t *testing.T) {
	var count [Slots]int
	const n = Slots * 64
	for i := range uint64(n) {
		count[SlotOf(kvstore.Key{Layer: 0x1234567, Number: i * 32})]++
	}
	for slot, c := range count { // 64 expected, standard deviation 8
		if c < 16 || c > 128 {
			t.Errorf("slot %d has %d of %d", slot, c, n)
		}
	}
}

func BenchmarkServer(b *testing.B) {
	st := mem.New(mem.Config{Servers: 3})
	p := open(b, st, Options{})
	makeReady(b, p, "v")
	b.ReportAllocs()
	for i := range uint64(b.N) {
		if p.Server(kvstore.Key{Layer: 7, Number: i}) > 2 {
			b.Fatal("no such server")
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	p := open(b, mem.New(mem.Config{Servers: 3}), Options{})
	makeReady(b, p, "v")
	b.ReportAllocs()
	for range b.N {
		if _, err := p.Update(b.Context(), "v", func(v *Volume) error { v.Size += 4096; v.Size %= 1 << 30; v.Size += 4096; return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
