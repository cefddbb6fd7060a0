package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// Open opens a volume. For writing it takes the lease and recovers the local
// state that a crashed daemon of this machine left. Opening what this Set has
// open already gives the same Volume with one more reference; a volume open for
// reading is upgraded in place when it is opened for writing.
//
// A volume is opened for reading while nobody else has it open for writing, and
// nobody else can open it for writing meanwhile: pool.ErrHeld. If somebody could all
// the same, because this machine was cut off from the store, reads fail from then on
// until it was closed everywhere here.
//
// With Options.Stale it is opened for reading whoever writes, and nobody is kept
// out. Its map is that of the last flush before; of a block that was written since
// the old or the new content is read, or zeros if it was new, and of one that was
// discarded since perhaps ErrLost.
func (s *Set) Open(ctx context.Context, name string, write bool) (*Volume, error) {
	unlock, err := s.lockName(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.openLocked(ctx, name, write, nil)
}

// openLocked is Open with the name locked. fits, which may be nil, is asked before a
// volume becomes writable, when nobody else can change its record: with an error it
// stays as it was. It is not asked if a crash left something to be stored.
func (s *Set) openLocked(ctx context.Context, name string, write bool, fits func(pool.Volume) error) (*Volume, error) {
	v := s.opened(name)
	if v == nil {
		rec, err := s.record(ctx, name)
		if err != nil {
			return nil, err
		}
		if rec.Unaccepted {
			return nil, unaccepted(name)
		}
		v = s.newVolume(name, rec)
	}
	if v.aborted.Load() {
		return nil, fmt.Errorf("open volume %s: %w: close it everywhere first", name, ErrVolumeAborted)
	}
	if v.refs > 0 && v.overtaken() != nil {
		return nil, fmt.Errorf("open volume %s: %w: somebody else had it meanwhile, close it everywhere here first", name, pool.ErrHeld)
	}
	defer s.beOpening(v)()
	ctx, done := v.patient(ctx)
	defer done()
	if v.refs == 0 {
		if !write {
			if err := s.openReading(ctx, v); err != nil {
				return nil, err
			}
		}
	}
	if write && !v.writable.Load() {
		if err := v.startWriting(ctx, fits); err != nil {
			return nil, fmt.Errorf("open volume %s: %w", name, err)
		}
	}
	if v.aborted.Load() && v.refs == 0 {
		v.abandon()
		return nil, fmt.Errorf("open volume %s: %w", name, ErrVolumeAborted)
	}
	v.refs++
	s.setOpened(name, v)
	return v, nil
}

// newVolume returns a volume that is not open yet.
func (s *Set) newVolume(name string, rec pool.Volume) *Volume {
	layer := rec.Layers[0]
	v := &Volume{set: s, name: name, uuid: rec.UUID, layer: layer.ID, seed: kvstore.Seed(layer.UUID),
		gate: newGate(), pageOps: make([]*kvstore.Op, 0, pageBatch), abortion: newAbortion()}
	v.use.idle = make(chan struct{}, 1)
	return v
}

// record reads the record of a volume that is ready.
func (s *Set) record(ctx context.Context, name string) (pool.Volume, error) {
	rec, err := s.pool.Volume(ctx, name)
	switch {
	case err != nil:
		return rec, err
	case rec.State != pool.Ready:
		return rec, fmt.Errorf("%w: %s is not ready: it is being made or removed", pool.ErrNoVolume, name)
	case len(rec.Layers) != 1:
		return rec, fmt.Errorf("%w: volume %s has %d layers", pool.ErrFormat, name, len(rec.Layers))
	case rec.Incompat != 0:
		return rec, fmt.Errorf("%w: volume %s needs features %#x", pool.ErrFormat, name, rec.Incompat)
	case !s.prop.Presence && (rec.MapHeight == 0 || rec.MapHeight > maxLevels || MapHeight(rec.Size) > rec.MapHeight):
		return rec, fmt.Errorf("%w: volume %s has a map of height %d", pool.ErrFormat, name, rec.MapHeight)
	case !s.prop.Presence && !s.prop.ReportsAbsent:
		return rec, fmt.Errorf("volume %s: a store that does not know its blocks must report absent ones: %w", name, kvstore.ErrUnsupported)
	}
	return rec, nil
}

// openReading prepares v for reading.
func (s *Set) openReading(ctx context.Context, v *Volume) error {
	v.stale = s.opt.Stale
	if !v.stale {
		if err := s.share(ctx, v); err != nil {
			return fmt.Errorf("open volume %s for reading: %w", v.name, err)
		}
	}
	opened := false // a panic leaves it so
	defer func() {
		if !opened {
			v.endReading(context.WithoutCancel(ctx))
		}
	}()
	err := s.readMap(ctx, v)
	opened = err == nil
	return err
}

// readMap reads the record and the map of a volume that is open for reading, into
// private memory.
func (s *Set) readMap(ctx context.Context, v *Volume) error {
	rec, err := s.record(ctx, v.name) // as it is once nobody writes
	if err != nil {
		return err
	}
	if rec.Unaccepted {
		return unaccepted(v.name)
	}
	v.take(rec)
	s.opt.Opened(v.layer)
	if s.prop.Presence {
		return nil
	}
	return s.withChannel(ctx, func(ch kvstore.Channel) error {
		l := newLoader(rec)
		l.m = newPresence(l.blocks)
		if err := l.load(ctx, ch); err != nil {
			return err
		}
		v.reportLostPages(ctx, l)
		v.m.Store(l.m)
		return nil
	})
}

// share takes a share of the lease, after it saw to it that nobody writes. Who comes
// in between is refused to, or refuses us.
func (s *Set) share(ctx context.Context, v *Volume) error {
	if err := s.settleForReading(ctx, v); err != nil {
		return err
	}
	lease, err := s.pool.AcquireShared(ctx, v.name, s.opt.Lease)
	if err != nil {
		return err
	}
	v.reading.Store(lease)
	return nil
}

// leaveTime bounds how long giving up a share waits for a server: it runs out.
// restoreTime is for one that goes on.
const (
	leaveTime   = 5 * time.Second
	restoreTime = 2 * time.Second
)

// endReading gives up the share of the lease, if there is one.
func (v *Volume) endReading(ctx context.Context) {
	lease := v.reading.Swap(nil)
	if lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	if err := lease.Release(ctx); err != nil {
		lease.Abandon()
		v.set.logf("volume %s: its read lease was not given back, and runs out: %v", v.name, err)
	}
}

// overtaken says why a volume that is open for reading cannot be read any more; nil
// if it can, or waits for its lease.
func (v *Volume) overtaken() error {
	if lease := v.reading.Load(); lease != nil {
		return lease.Over()
	}
	return nil
}

// take copies what the volume keeps of its record.
func (v *Volume) take(rec pool.Volume) {
	v.blocks.Store(blocksOf(rec.Size))
	v.height = rec.MapHeight
	v.generation.Store(rec.Generation)
	v.damaged.Store(rec.Damaged)
}

// settleForReading sees to it that nobody writes to the volume. If somebody has
// it, or a crash left what is to be stored, it is opened for writing and closed
// again: that recovers what a dead holder left, and is refused by one that lives.
func (s *Set) settleForReading(ctx context.Context, v *Volume) error {
	_, held, err := s.pool.Holder(ctx, v.name)
	if err != nil {
		return err
	}
	if !held {
		if left, err := s.leftHere(ctx, v); err != nil || !left {
			return err
		}
	}
	w, err := s.openLocked(ctx, v.name, true, nil)
	if errors.Is(err, ErrInUse) {
		return fmt.Errorf("%w: %w", pool.ErrHeld, err)
	}
	if err != nil {
		return err
	}
	return w.closeLocked(context.WithoutCancel(ctx)) // or it would stay open, and nobody's
}

// leftHere says whether there is local state that must be stored before anybody
// reads. What cannot be stored any more goes: others may share the volume for
// reading, and would refuse that it is opened for writing.
func (s *Set) leftHere(ctx context.Context, v *Volume) (bool, error) {
	if _, err := os.Lstat(statePath(s.opt.RuntimeDir, v.uuid)); err != nil {
		return false, nil
	}
	sf, err := lockState(s.opt.RuntimeDir, v.uuid)
	if errors.Is(err, ErrInUse) {
		return true, nil // who opens it for writing is told by whom
	}
	if err != nil {
		return false, err
	}
	defer sf.leave()
	head, left := sf.head()
	if !left || !v.leftBy(head) {
		return !sf.worthless(), nil
	}
	over, err := s.pool.Ended(ctx, v.name, head.holder, head.generation)
	if err != nil || !over {
		return true, err
	}
	s.logf("volume %s: what a crash left on this machine is dropped: its lease was given back, or somebody else wrote since", v.name)
	return false, sf.void()
}

// leftBy says whether local state is of this volume and this boot.
func (v *Volume) leftBy(h stateHead) bool {
	return h.boot == bootID() && h.pool == v.set.pool.UUID() && h.volume == v.uuid && h.layer == v.layer
}

// startWriting takes the lock of this machine, then the lease, then the map: from
// the local state if it belongs to this very holding, else from the store. The
// name is locked. fits is that of openLocked.
func (v *Volume) startWriting(ctx context.Context, fits func(pool.Volume) error) (err error) {
	s := v.set
	sf, err := lockState(s.opt.RuntimeDir, v.uuid)
	if err != nil {
		return err
	}
	opened := false // a panic leaves it so
	defer func() {
		if !opened {
			v.state = nil
			sf.leave()
		}
	}()
	old, left := sf.head()
	left = left && v.leftBy(old) && (s.prop.Presence || sf.hasMap())
	share := v.reading.Load()
	lease, err := s.acquire(ctx, v.name, v.uuid, left, share)
	if err != nil {
		return err
	}
	resumed := left && lease.ID() == old.holder && lease.Generation() == old.generation
	defer func() {
		switch {
		case opened:
		case resumed: // else it has nothing to be kept for
			s.keepLease(v.uuid, lease)
		case share != nil:
			lease.Abandon() // nothing was written
			restore(ctx, share)
		default:
			giveUp(ctx, lease)
		}
	}()
	s.opt.Opened(v.layer)
	v.generation.Store(lease.Generation())
	if left {
		fits = nil // what a crash left is stored first
	}
	rec, err := v.recordToWrite(ctx, fits)
	if err != nil {
		return err
	}
	if left && !resumed {
		s.logf("volume %s: somebody else wrote to it since this machine crashed; what was not flushed then is dropped", v.name)
	}
	v.damaged.Store(rec.Damaged)
	v.lease.Store(lease)
	v.fence.Store(lease.Fence())
	head := stateHead{boot: bootID(), pool: s.pool.UUID(), volume: v.uuid, layer: v.layer,
		holder: lease.ID(), generation: lease.Generation()}
	if err := v.makeMap(ctx, sf, rec, head, resumed); err != nil {
		return err
	}
	v.state = sf
	v.take(rec) // the size after the map: see Worker.begin
	v.writable.Store(true)
	if share != nil {
		v.reading.Store(nil)
		share.Abandon() // the lease for writing took its place
	}
	opened = true
	if v.m.Load() != nil && anyWord(v.m.Load().queued) {
		v.reaper.kick(v)
	}
	return nil
}

// recordToWrite reads the record, which may have changed until we had the lease.
func (v *Volume) recordToWrite(ctx context.Context, fits func(pool.Volume) error) (pool.Volume, error) {
	rec, err := v.set.record(ctx, v.name)
	switch {
	case err != nil:
	case rec.Unaccepted && !v.accepting:
		err = unaccepted(v.name)
	case rec.ROCompat != 0:
		err = fmt.Errorf("%w: its features %#x allow reading only", pool.ErrFormat, rec.ROCompat)
	case fits != nil:
		err = fits(rec)
	}
	return rec, err
}

// stillOurs is an error if the lease ran out while the map was read, which no fence
// stops: somebody else may have written, and who reads here must not take what it read
// for whole since. It waits for a lease that is being renewed.
func (v *Volume) stillOurs(ctx context.Context) error {
	if err := v.lease.Load().Wait(ctx); err != nil {
		return err
	}
	if share := v.reading.Load(); share != nil {
		return share.Over()
	}
	return nil
}

// giveUp releases a lease that was of no use; what cannot be released runs out.
func giveUp(ctx context.Context, lease *pool.Lease) {
	if lease.Release(context.WithoutCancel(ctx)) != nil {
		lease.Abandon()
	}
}

// restore waits until a share is what it was before an upgrade that failed. Then
// this machine's lock is given up. If it takes long what is read waits for it.
func restore(ctx context.Context, share *pool.Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTime)
	defer cancel()
	_ = share.Wait(ctx)
}

// acquire takes the lease of a volume whose local state is locked; resume if a
// crash left something to recover, share if it is open for reading.
func (s *Set) acquire(ctx context.Context, name string, uuid [16]byte, resume bool, share *pool.Lease) (*pool.Lease, error) {
	s.mu.Lock()
	kept := s.kept[uuid]
	delete(s.kept, uuid)
	s.mu.Unlock()
	if kept != nil {
		err := kept.Wait(ctx)
		if err == nil {
			return kept, nil
		}
		if !errors.Is(err, pool.ErrHeld) {
			s.keepLease(uuid, kept)
			return nil, err
		}
	}
	opt := s.opt.Lease
	opt.Alone, opt.Resume, opt.Upgrade = true, resume, share
	lease, err := s.pool.Acquire(ctx, name, opt)
	if err != nil && share != nil {
		restore(ctx, share)
	}
	return lease, err
}

// keepLease holds on to the lease of a recovery that failed, for the next try: if
// it were released, the next holding would be another one and what the crash left
// would be dropped.
func (s *Set) keepLease(uuid [16]byte, lease *pool.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[uuid] = lease
}
