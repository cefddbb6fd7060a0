package pool

import (
	"context"
	"errors"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig makes a mem store look like one that outlives this process and that other
// machines reach, under addresses and in an order of choice, and fails control
// calls on demand.
type rig struct {
	*mem.Store
	addresses []string
	order     []int // server number here -> server number of the mem store
	private   bool  // no other machine reaches it

	mu      sync.Mutex // guards what follows
	joins   int
	claimed []kvstore.LayerID
	removed []kvstore.LayerID
	// before is asked before each control call and each layer claim; an error
	// is the result. after likewise, once the call was done.
	before, after func(op, name string, server int) error
}

func newRig(st *mem.Store, addresses ...string) *rig {
	s := &rig{Store: st, addresses: addresses}
	if len(addresses) == 0 {
		s.addresses = st.Servers()
	}
	for i := range s.addresses {
		s.order = append(s.order, i)
	}
	return s
}

// hook sets before and after.
func (s *rig) hook(before, after func(op, name string, server int) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.after = before, after
}

func (s *rig) ask(pick func() func(string, string, int) error, op, name string, server int) error {
	s.mu.Lock()
	f := pick()
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(op, name, server)
}

func (s *rig) call(op, name string, server int, do func(server int) error) error {
	if err := s.ask(func() func(string, string, int) error { return s.before }, op, name, server); err != nil {
		return err
	}
	if err := do(s.order[server]); err != nil {
		return err
	}
	return s.ask(func() func(string, string, int) error { return s.after }, op, name, server)
}

func (s *rig) Properties() kvstore.Properties {
	p := s.Store.Properties()
	p.Name, p.Shared = "rig", !s.private
	return p
}

func (s *rig) Servers() []string { return s.addresses }

func (s *rig) Control() kvstore.Control { return rigControl{s} }

func (s *rig) Join(p kvstore.Placement) error {
	s.mu.Lock()
	s.joins++
	s.mu.Unlock()
	return s.Store.Join(p)
}

func (s *rig) CreateLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.call("claim", id.String(), 0, func(int) error {
		err := s.Store.CreateLayer(ctx, id)
		if err == nil {
			s.mu.Lock()
			s.claimed = append(s.claimed, id)
			s.mu.Unlock()
		}
		return err
	})
}

func (s *rig) RemoveLayer(ctx context.Context, id kvstore.LayerID) error {
	return s.call("drop", id.String(), 0, func(int) error {
		s.mu.Lock()
		s.removed = append(s.removed, id)
		s.mu.Unlock()
		return s.Store.RemoveLayer(ctx, id)
	})
}

type rigControl struct{ s *rig }

func (c rigControl) Get(ctx context.Context, n int, name string) (r kvstore.Record, err error) {
	err = c.s.call("get", name, n, func(n int) (err error) {
		r, err = c.s.Store.Control().Get(ctx, n, name)
		return err
	})
	return r, err
}

func (c rigControl) Add(ctx context.Context, n int, name string, v []byte) error {
	return c.s.call("add", name, n, func(n int) error { return c.s.Store.Control().Add(ctx, n, name, v) })
}

func (c rigControl) Swap(ctx context.Context, n int, name string, old kvstore.Record, v []byte) error {
	return c.s.call("swap", name, n, func(n int) error { return c.s.Store.Control().Swap(ctx, n, name, old, v) })
}

func (c rigControl) Delete(ctx context.Context, n int, name string) error {
	return c.s.call("delete", name, n, func(n int) error { return c.s.Store.Control().Delete(ctx, n, name) })
}

// open opens a pool that is closed with the test.
func open(t testing.TB, st kvstore.Store, opt Options) *Pool {
	t.Helper()
	p, err := Open(t.Context(), st, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// makeReady creates a volume and sets it Ready.
func makeReady(t testing.TB, p *Pool, name string) Volume {
	t.Helper()
	if _, err := p.CreateVolume(t.Context(), name, 1<<20, 1); err != nil {
		t.Fatal(err)
	}
	v, err := p.Update(t.Context(), name, setTo(Ready))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func setTo(s State) func(*Volume) error {
	return func(v *Volume) error { v.State = s; return nil }
}

// wantErr also logs the message: messages are part of the product.
func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	t.Log(err)
}

func TestLifeOfAVolume(t *testing.T) {
	ctx := t.Context()
	st := mem.New(mem.Config{Servers: 3})
	p := open(t, st, Options{StateDir: t.TempDir(), RuntimeDir: t.TempDir()})
	if p.Formatted() {
		t.Fatal("an empty store is formatted")
	}
	if list, err := p.Volumes(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	_, err := p.Volume(ctx, "a")
	wantErr(t, err, ErrNoVolume)
	v, err := p.CreateVolume(ctx, "a", 1<<20, 1)
	if err != nil || v.State != Creating || len(v.Layers) != 1 || !p.Formatted() {
		t.Fatal(v, err)
	}
	makeReady(t, p, "b")
	if _, err = p.Update(ctx, "a", setTo(Ready)); err != nil {
		t.Fatal(err)
	}
	_, err = p.CreateVolume(ctx, "a", 1<<20, 1)
	wantErr(t, err, ErrVolumeExists)

	q := open(t, st, Options{})
	if q.UUID() != p.UUID() {
		t.Fatal("another uuid")
	}
	list, err := q.Volumes(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[1].Name != "b" || list[0].State != Ready {
		t.Fatal(list, err)
	}
	wantErr(t, p.ForgetVolume(ctx, "a"), kvstore.ErrInvalid)
	if _, err = q.Update(ctx, "a", setTo(Removing)); err != nil {
		t.Fatal(err)
	}
	_, err = p.CreateVolume(ctx, "a", 1<<20, 1)
	wantErr(t, err, ErrVolumeExists)
	if err := p.ForgetVolume(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if list, err = q.Volumes(ctx); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	wantErr(t, p.ForgetVolume(ctx, "a"), ErrNoVolume)
}
