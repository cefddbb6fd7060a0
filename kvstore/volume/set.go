package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Set is all volumes of one pool. Safe for concurrent use.
type Set struct {
	pool      *pool.Pool
	store     kvstore.Store
	prop      kvstore.Properties
	opt       Options
	claims    *claims
	owners    atomic.Uint32
	reapDelay time.Duration
	reapRetry time.Duration

	mu   sync.Mutex
	open map[string]*Volume // guarded by mu
	// opening are those that Open works on, for Abort; guarded by mu.
	opening map[string]*Volume
	names   map[string]*nameLock // guarded by mu
	// kept has the leases of recoveries that failed, by volume; guarded by mu.
	kept map[[16]byte]*pool.Lease
}

// nameLock orders opening, closing and changing one volume.
type nameLock struct {
	gate  gate
	users int // guarded by Set.mu
}

// New returns the volumes of a pool. Nothing is read yet.
func New(p *pool.Pool, st kvstore.Store, opt Options) *Set {
	if opt.Opened == nil {
		opt.Opened = func(kvstore.LayerID) {}
	}
	return &Set{pool: p, store: st, prop: st.Properties(), opt: opt, claims: new(claims),
		reapDelay: reapDelay, reapRetry: reapRetry, open: map[string]*Volume{}, opening: map[string]*Volume{}, names: map[string]*nameLock{},
		kept: map[[16]byte]*pool.Lease{}}
}

func (s *Set) logf(format string, args ...any) {
	if s.opt.Log != nil {
		s.opt.Log(format, args...)
	}
}

// owner returns a number for an owner of claims.
func (s *Set) owner() uint32 {
	for {
		if n := s.owners.Add(1) & (1<<31 - 1); n != 0 {
			return n
		}
	}
}

// expect translates an expectation for stores that know only Any.
func (s *Set) expect(e kvstore.Expect) kvstore.Expect {
	if s.prop.Expects {
		return e
	}
	return kvstore.Any
}

// lockName locks a volume's name; the caller calls what it returns.
func (s *Set) lockName(ctx context.Context, name string) (unlock func(), err error) {
	s.mu.Lock()
	l := s.names[name]
	if l == nil {
		l = &nameLock{gate: newGate()}
		s.names[name] = l
	}
	l.users++
	s.mu.Unlock()
	drop := func() {
		s.mu.Lock()
		if l.users--; l.users == 0 {
			delete(s.names, name)
		}
		s.mu.Unlock()
	}
	if err := l.gate.lock(ctx); err != nil {
		drop()
		return nil, err
	}
	return func() {
		l.gate.unlock()
		drop()
	}, nil
}

func (s *Set) opened(name string) *Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[name]
}

// forgotten tells the layers below that nobody uses a layer any more.
func (s *Set) forgotten(layer kvstore.LayerID) {
	if s.opt.Closed != nil {
		s.opt.Closed(layer)
	}
}

func (s *Set) setOpened(name string, v *Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v == nil {
		delete(s.open, name)
	} else {
		s.open[name] = v
	}
}

// beOpening enters a volume that is being opened; the caller calls what it returns.
func (s *Set) beOpening(v *Volume) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	outer := s.opening[v.name] // an open for reading that recovers first
	s.opening[v.name] = v
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.opening[v.name] = outer; outer == nil {
			delete(s.opening, v.name)
		}
	}
}

// withChannel calls f with a channel of its own.
func (s *Set) withChannel(ctx context.Context, f func(ch kvstore.Channel) error) (err error) {
	ch, err := s.store.Channel(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ch.Close()) }() // also when f panics
	return f(ch)
}

// Create makes an empty volume of size bytes (a multiple of kvstore.BlockSize).
func (s *Set) Create(ctx context.Context, name string, size int64) error {
	if err := errors.Join(pool.CheckName(name), pool.CheckSize(size)); err != nil {
		return err
	}
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	height := MapHeight(size)
	if s.prop.Presence {
		height = 0
	}
	rec, err := s.pool.CreateVolume(ctx, name, size, height)
	if err != nil {
		return err
	}
	if height > 0 {
		if err := s.withChannel(ctx, func(ch kvstore.Channel) error { return s.storeTop(ctx, ch, rec) }); err != nil {
			return fmt.Errorf("create volume %s: %w", name, err)
		}
	}
	_, err = s.pool.Update(ctx, name, func(r *pool.Volume) error {
		r.State = pool.Ready
		return nil
	})
	return err
}

// storeTop stores the empty top page of a new volume, over a leftover if there is
// one.
func (s *Set) storeTop(ctx context.Context, ch kvstore.Channel, rec pool.Volume) error {
	layer := rec.Layers[0]
	id := pageID{rec.MapHeight - 1, 0}
	data := make([]byte, kvstore.BlockSize)
	putPage(data, layer.ID, id, pageVersion{0, 1}, nil)
	op := kvstore.Op{Code: kvstore.Write, Key: id.key(layer.ID), Seed: kvstore.Seed(layer.UUID), Data: data}
	ch.Do(ctx, []*kvstore.Op{&op})
	return op.Err
}

// List describes all volumes, sorted by name. It does not read maps: Allocated
// is -1 unless it is open here or the store knows.
func (s *Set) List(ctx context.Context) ([]Info, error) {
	recs, err := s.pool.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]Info, len(recs))
	for i, rec := range recs {
		infos[i] = s.describe(ctx, rec)
	}
	return infos, nil
}

// describe tells what is known of a volume without its map.
func (s *Set) describe(ctx context.Context, rec pool.Volume) Info {
	in := Info{Volume: rec, Allocated: -1}
	if v := s.opened(rec.Name); v != nil && v.uuid == rec.UUID {
		in.Open = true
		in.Size = v.Size()
		in.Allocated = v.Allocated()
	} else if s.prop.Presence && len(rec.Layers) > 0 {
		if n, err := s.store.Allocated(ctx, rec.Layers[0].ID); err == nil {
			in.Allocated = int64(n) * kvstore.BlockSize
		}
	}
	if writer, readers, err := s.pool.Holders(ctx, rec.Name); err == nil {
		in.Holder, in.Readers = writer, readers
	}
	return in
}

// Info describes one volume; Allocated is exact (the map is read if need be).
func (s *Set) Info(ctx context.Context, name string) (Info, error) {
	rec, err := s.pool.Volume(ctx, name)
	if err != nil {
		return Info{}, err
	}
	in := s.describe(ctx, rec)
	if in.Consents, err = s.pool.Consents(ctx, rec.UUID); err != nil {
		return in, err
	}
	if in.Allocated >= 0 || rec.State != pool.Ready || rec.MapHeight == 0 {
		return in, nil
	}
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		l := newLoader(rec)
		l.m = newPresence(l.blocks)
		if err := l.load(ctx, ch); err != nil {
			return err
		}
		in.Allocated = l.m.count.Load() * kvstore.BlockSize
		return nil
	})
	return in, err
}

// Close closes what is left open, as Volume.Close does, and stops the
// background. All workers must be closed.
func (s *Set) Close(ctx context.Context) error {
	s.mu.Lock()
	var left []*Volume
	for _, v := range s.open {
		left = append(left, v)
	}
	s.mu.Unlock()
	var errs []error
	for _, v := range left {
		unlock, err := s.lockName(ctx, v.name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if s.opened(v.name) == v {
			v.refs = 1
			errs = append(errs, v.closeLocked(ctx))
		}
		unlock()
	}
	return errors.Join(errs...)
}
