package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// crashAt fails the nth call of the store from now on and all later ones: the
// daemon is gone, or its store is. done says that the nth call itself is still
// executed, its answer being lost.
func crashAt(r *rig, n int, done bool) {
	calls := 0
	var before, after func(op, name string, server int) error
	before = func(op, name string, server int) error {
		calls++
		if calls > n || calls == n && !done {
			return &kvstore.OpError{Op: op, Name: name, Server: r.addresses[server], Err: kvstore.ErrUnreachable}
		}
		return nil
	}
	after = func(op, name string, server int) error {
		if calls >= n {
			return &kvstore.OpError{Op: op, Name: name, Server: r.addresses[server], Err: kvstore.ErrUnreachable}
		}
		return nil
	}
	r.hook(before, after)
}

// checkCopies compares the records of all servers and of the catalogue.
func checkCopies(t *testing.T, r *rig, p *Pool) {
	t.Helper()
	ctx := context.Background()
	names := []string{p.poolName(), p.catalogueName()}
	list, err := p.Volumes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		names = append(names, p.volumeName(v.UUID))
	}
	for _, name := range names {
		var first []byte
		for i := range r.addresses {
			rec, err := r.Store.Control().Get(ctx, i, name)
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 && string(rec.Value) != string(first) {
				t.Errorf("%s differs on %s", name, r.addresses[i])
			}
			first = rec.Value
		}
	}
	for _, v := range list {
		for _, l := range v.Layers {
			if !slices.Contains(r.claimed, l.ID) {
				t.Errorf("layer %s of %s was never claimed", l.ID, v.Name)
			}
			if slices.Contains(r.removed, l.ID) {
				t.Errorf("layer %s of %s was removed", l.ID, v.Name)
			}
		}
	}
}

// atEveryCrash runs op with a crash at its first call, its second and so on until
// it succeeds without one; then check looks, as a fresh daemon.
func atEveryCrash(t *testing.T, prepare, op func(p *Pool) error, check func(t *testing.T, r *rig, p *Pool)) {
	for _, done := range []bool{false, true} {
		for n := 1; ; n++ {
			if n > 500 {
				t.Fatal("it never ends")
			}
			r := newRig(mem.New(mem.Config{Servers: 3}))
			p := open(t, r, Options{})
			if err := prepare(p); err != nil {
				t.Fatal(err)
			}
			crashAt(r, n, done)
			err := op(p)
			r.hook(nil, nil)
			if err != nil && !errors.Is(err, kvstore.ErrUnreachable) {
				t.Fatalf("crash at call %d: %v", n, err)
			}
			if err == nil {
				t.Logf("%d calls (answer lost: %v)", n, done)
			}
			fresh := newRig(r.Store)
			fresh.claimed, fresh.removed = r.claimed, r.removed
			t.Run(fmt.Sprintf("call %d, done %v", n, done), func(t *testing.T) {
				check(t, fresh, open(t, fresh, Options{}))
			})
			if err == nil || t.Failed() {
				break
			}
		}
	}
}

func createReady(name string) func(p *Pool) error {
	return func(p *Pool) error {
		if _, err := p.CreateVolume(context.Background(), name, 1<<20, 1); err != nil {
			return err
		}
		_, err := p.Update(context.Background(), name, setTo(Ready))
		return err
	}
}

func remove(name string) func(p *Pool) error {
	return func(p *Pool) error {
		if _, err := p.Update(context.Background(), name, setTo(Removing)); err != nil {
			return err
		}
		return p.ForgetVolume(context.Background(), name)
	}
}

func TestCrashInCreate(t *testing.T) {
	ctx := t.Context()
	atEveryCrash(t, func(*Pool) error { return nil }, createReady("v"), func(t *testing.T, r *rig, p *Pool) {
		list, err := p.Volumes(ctx)
		if err != nil || len(list) > 1 {
			t.Fatal(list, err)
		}
		if len(list) == 1 && list[0].State == Ready {
			_, err := p.CreateVolume(ctx, "v", 1<<20, 1)
			wantErr(t, err, ErrVolumeExists)
		} else if err := createReady("v")(p); err != nil { // a leftover is taken over
			t.Fatal(err)
		}
		// The next writer of a record brings lagging copies up to date.
		if err := createReady("w")(p); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Update(ctx, "v", func(*Volume) error { return nil }); err != nil {
			t.Fatal(err)
		}
		checkCopies(t, r, p)
	})
}

func TestCrashInRemove(t *testing.T) {
	ctx := t.Context()
	prepare := func(p *Pool) error { return errors.Join(createReady("v")(p), createReady("w")(p)) }
	atEveryCrash(t, prepare, remove("v"), func(t *testing.T, r *rig, p *Pool) {
		v, err := p.Volume(ctx, "v")
		switch {
		case errors.Is(err, ErrNoVolume):
		case err != nil:
			t.Fatal(err)
		default:
			if v.State == Removing {
				err = p.ForgetVolume(ctx, "v")
			} else {
				err = remove("v")(p)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		list, err := p.Volumes(ctx) // also drops what is left of the entry
		if err != nil || len(list) != 1 || list[0].Name != "w" {
			t.Fatal(list, err)
		}
		if err := createReady("v")(p); err != nil {
			t.Fatal(err)
		}
		checkCopies(t, r, p)
	})
}

func TestCrashInForgetRecordless(t *testing.T) {
	ctx := t.Context()
	p := open(t, mem.New(mem.Config{}), Options{})
	makeReady(t, p, "w")
	tab := p.table.Load()
	for _, state := range []State{Creating, Removing} {
		if err := p.reserve(ctx, tab, entry{"v", state, newID()}); err != nil {
			t.Fatal(err)
		}
		_, err := p.Volume(ctx, "v")
		wantErr(t, err, ErrNoVolume)
		if err := p.ForgetVolume(ctx, "v"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, p.ForgetVolume(ctx, "v"), ErrNoVolume)
	}
}
