package writeback

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// flight is a batch of entries on its way into the store, over one channel.
type flight struct {
	entries []*entry // nil: has landed
	ops     []kvstore.Op
	on      []*kvstore.Op
	again   []*entry
	// failing has the first error of each server since reset.
	failing []error
}

func (f *flight) reset(servers int) {
	if f.failing == nil {
		f.failing = make([]error, servers)
	}
	clear(f.failing)
}

// err is the error that tells most. A closed fence comes first: what waits for it can be
// stored still, and the next try tells the rest. Then that a server was emptied, else any.
func (f *flight) err() (err error) {
	for _, e := range f.failing {
		switch {
		case e == nil:
		case errors.Is(e, kvstore.ErrFenced):
			return e
		case err == nil || errors.Is(e, kvstore.ErrServerLost):
			err = e
		}
	}
	return err
}

// run stores the entries. Those of a silent server hold up none of another one's.
func (f *flight) run(ctx context.Context, ch kvstore.Channel) {
	for len(f.entries) > 0 {
		f.ops, f.on, f.again = f.ops[:0], f.on[:0], f.again[:0]
		for _, e := range f.entries {
			op := kvstore.Op{Code: kvstore.Write, Expect: kvstore.Present, Seed: e.seed, Data: e.data, Fence: e.fence,
				Key: kvstore.Key{Layer: e.layer.id, Number: e.number}}
			if e.absent {
				op.Expect = kvstore.Absent
			}
			f.ops = append(f.ops, op)
		}
		for i := range f.ops {
			f.on = append(f.on, &f.ops[i])
		}
		if !ch.Try(ctx, f.on) {
			f.land()
			ch.Finish(ctx)
		}
		f.land()
		f.entries, f.again = append(f.entries[:0], f.again...), f.again[:0]
	}
}

// land ends what has a result.
func (f *flight) land() {
	for i, e := range f.entries {
		if e == nil || errors.Is(f.ops[i].Err, kvstore.ErrPending) {
			continue
		}
		f.entries[i] = nil
		l, server, err := e.layer, e.server, f.ops[i].Err
		again, failed := l.land(e, err)
		if again {
			f.again = append(f.again, e)
		}
		if !failed {
			continue
		}
		if f.failing[server] == nil {
			f.failing[server] = err
		}
		l.seen.Store(false) // until a flush succeeds
	}
}

// abandon ends what a panic left. The channel below is closed: nothing of it is sent
// any more.
func (f *flight) abandon() {
	for _, e := range append(f.entries, f.again...) {
		if e != nil {
			e.layer.seen.Store(false)
			e.layer.land(e, kvstore.ErrPanic)
		}
	}
	f.entries, f.again = f.entries[:0], f.again[:0]
}

// drain stores all that is dirty of a layer now. What comes meanwhile is left.
func (f *flight) drain(ctx context.Context, ch kvstore.Channel, l *layer) error {
	f.reset(len(l.queued))
	seq, share := l.sequence(), max(1, kvstore.MaxBatch/len(l.queued))
	for l.any.Load() > 0 {
		for server := range l.queued {
			if f.failing[server] == nil {
				f.entries = l.launch(server, share, seq, 0, f.entries)
			}
		}
		if len(f.entries) > 0 {
			f.run(ctx, ch)
			continue
		}
		more, wait := l.left(seq, f.failing)
		if more {
			continue
		}
		if wait == nil {
			break
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
	return f.err()
}

// ended says in the words of the store why a context ended.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}

// drainer stores what is dirty of one server for long enough, or, while much is dirty,
// at once. It has a goroutine and a channel of its own from the first dirty block on.
type drainer struct {
	store  *Store
	server int
	once   sync.Once
	awake  atomic.Bool // it will look at the queues
	kicks  chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
	over   chan struct{} // nil: never started

	ch     kvstore.Channel
	flight flight
	failed bool
}

const (
	// drainBatch is how many blocks are stored at once: enough to hide the round trip,
	// few beside what a server has to do for those who wait.
	drainBatch = 128
	// drainRetry is the pause after a failure.
	drainRetry = 250 * time.Millisecond
)

func newDrainer(s *Store, server int) *drainer {
	d := &drainer{store: s, server: server, kicks: make(chan struct{}, 1)}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// pressed says whether so much is dirty that it is stored whatever its age.
func (s *Store) pressed() bool {
	return s.dirty.Load()*kvstore.BlockSize*2 >= s.cfg.MaxDirty
}

// wake says that there is something dirty, now: that it shall not wait.
func (d *drainer) wake(now bool) {
	if d.awake.Load() && !now || d.awake.Swap(true) && !now {
		return
	}
	d.once.Do(func() {
		d.over = make(chan struct{})
		go d.run()
	})
	select {
	case d.kicks <- struct{}{}:
	default:
	}
}

// stop ends it. Nothing is dirty, and nobody calls wake any more.
func (d *drainer) stop() {
	d.cancel()
	d.once.Do(func() {})
	if d.over != nil {
		<-d.over
	}
}

func (d *drainer) run() {
	defer close(d.over)
	defer d.closeChannel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		d.awake.Store(false) // from here on a wake counts
		wait, dirty := d.due()
		if dirty {
			d.awake.Store(true)
		} else {
			wait = time.Hour
		}
		if d.failed {
			wait = drainRetry
		}
		if wait > 0 {
			timer.Reset(wait)
			kicks := d.kicks
			if d.failed {
				kicks = nil
			}
			select {
			case <-kicks:
			case <-timer.C:
			case <-d.ctx.Done():
				return
			}
			d.failed = false
			continue
		}
		err := kvstore.Contain(func() error { return d.round() })
		if kvstore.LogPanic(d.store.cfg.Log, "storing what was acknowledged", err) {
			d.closeChannel() // its state cannot be trusted
			d.flight.abandon()
		}
		if d.failed = err != nil; d.ctx.Err() != nil {
			return
		}
	}
}

func (d *drainer) closeChannel() {
	if d.ch != nil {
		err := kvstore.Contain(d.ch.Close)
		kvstore.LogPanic(d.store.cfg.Log, "closing a channel of write-back", err)
		d.ch = nil
	}
}

// due says how long it takes until something has to be stored, if anything is dirty.
func (d *drainer) due() (wait time.Duration, dirty bool) {
	for _, l := range *d.store.layers.Load() {
		if left, ok := l.due(d.server, d.store.pressed()); ok && (!dirty || left < wait) {
			wait, dirty = left, true
		}
	}
	return wait, dirty
}

// round stores what is due of each layer, a batch of each.
func (d *drainer) round() (failed error) {
	if d.ch == nil {
		ch, err := d.store.Store.Channel(d.ctx)
		if err != nil {
			return err
		}
		d.ch = ch
	}
	before := max(1, d.store.now()-int64(d.store.cfg.MaxAge))
	if d.store.pressed() {
		before = 0
	}
	for _, l := range *d.store.layers.Load() {
		d.flight.reset(len(l.queued))
		d.flight.entries = l.launch(d.server, drainBatch, ^uint64(0), before, d.flight.entries)
		if len(d.flight.entries) == 0 {
			continue
		}
		d.flight.run(l.ctx, d.ch)
		if err := d.flight.err(); err != nil {
			failed = err
			d.tell(l, err)
		} else {
			l.told.Store(false)
		}
	}
	return failed
}

// tell logs the first failure of a row. Fences that are closed are the volume's matter.
func (d *drainer) tell(l *layer, err error) {
	if l.ctx.Err() == nil && !errors.Is(err, kvstore.ErrFenced) && !l.told.Swap(true) {
		d.store.cfg.Log("blocks that were acknowledged cannot be stored, which is tried again: %v", err)
	}
}
