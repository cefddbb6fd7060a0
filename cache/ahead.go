package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// ahead reads ahead of streams. Each server has fetchers of its own, with channels
// of their own: what is read ahead stands in no queue before a read that somebody
// waits for, and a server that is silent keeps only its own fetchers.
//
//	advance -> push: a piece, its blocks reserved -> queue of the server -> fetcher: read in place, publish
//
// A read that meets a block which is being read ahead waits for it, within bounds,
// and reads it itself when they are over.
type ahead struct {
	store   *Store
	limit   uint64 // blocks ahead of a stream
	streams streams
	place   kvstore.Placement // set by join, before the first channel
	servers []*fetcher
	read    atomic.Uint64 // blocks

	ctx    context.Context // of all fetchers
	cancel context.CancelFunc
	wg     sync.WaitGroup

	stripes [64]stripe
}

const (
	// chunk is what is read ahead together: 128 KiB, which the pool places on one
	// server.
	chunk = 32
	// pieces bounds what waits for one server, 8 MiB.
	pieces = 64
	// fetchers of one server, and how many pieces each takes at a time: with a round
	// trip of 1 ms, two fetchers with two pieces gave 2.5 times the speed of reading
	// without, four with four 6 times. Larger batches are published later.
	fetchers = 4
	together = 4
	// fetchTime is how long a fetcher waits for its server, and fetchPause how long
	// nothing is read ahead from a server that did not answer.
	fetchTime  = 2 * time.Second
	fetchPause = 5 * time.Second
	// A read waits for what is being read ahead for graceFactor times what that took
	// lately, and between minGrace and maxGrace.
	graceFactor = 4
	minGrace    = 5 * time.Millisecond
	maxGrace    = 100 * time.Millisecond
)

// piece is blocks of a stream to be read, neighbours on one server.
type piece struct {
	stream     *stream
	generation uint32
	id         kvstore.LayerID
	seed       uint32
	numbers    [chunk]uint64
	slots      [chunk]uint32
	n          int
}

// fetcher reads ahead from one server.
type fetcher struct {
	a     *ahead
	start sync.Once
	queue chan *piece
	free  chan *piece
	until atomic.Int64 // nanoseconds since epoch: nothing is read ahead before
	took  atomic.Int64 // smoothed time of a batch, nanoseconds
}

var epoch = time.Now()

func newAhead(s *Store) *ahead {
	a := &ahead{store: s, limit: uint64(max(min(s.cfg.ReadAhead, s.cfg.Size/4)/kvstore.BlockSize, chunk))}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a
}

// join makes the fetchers; they start when there is something to read.
func (a *ahead) join(p kvstore.Placement, servers int) {
	a.place = p
	for range servers {
		f := &fetcher{a: a, queue: make(chan *piece, pieces), free: make(chan *piece, pieces)}
		for range pieces {
			f.free <- new(piece)
		}
		a.servers = append(a.servers, f)
	}
}

// close ends all fetchers and waits for them.
func (a *ahead) close() {
	a.cancel()
	for _, f := range a.servers {
		f.start.Do(func() {}) // nobody starts any more
	}
	a.wg.Wait()
}

// push has n blocks from first on read ahead. False: not now.
func (a *ahead) push(st *stream, r run, first, n uint64) bool {
	k := kvstore.Key{Layer: r.id, Number: first}
	number := a.place.Server(k)
	if number < 0 || number >= len(a.servers) || first+n > kvstore.MaxNumber {
		return false
	}
	f := a.servers[number]
	if a.store.inner.Silent(k) {
		return false
	}
	if u := f.until.Load(); u != 0 && int64(time.Since(epoch)) < u {
		return false
	}
	var p *piece
	select {
	case p = <-f.free:
	default:
		return false
	}
	f.start.Do(func() {
		for range fetchers {
			a.wg.Go(f.serve)
		}
	})
	p.stream, p.generation, p.id, p.seed, p.n = st, st.generation.Load(), r.id, r.seed, 0
	t := a.store.table
	for i := range n {
		k.Number = first + i
		if slot, ok := a.store.reserve(t.place(k), k, r.layer, aheadBit|freqUnit); ok {
			p.numbers[p.n], p.slots[p.n] = k.Number, slot
			p.n++
		}
	}
	if p.n == 0 { // all of it is cached
		f.free <- p
		return true
	}
	f.queue <- p // as long as the list of those that are free: it does not block
	return true
}

// serve reads what is queued until the store is closed.
func (f *fetcher) serve() {
	var ch kvstore.Channel
	defer func() { f.close(ch) }()
	ops := make([]kvstore.Op, together*chunk)
	batch := make([]*kvstore.Op, 0, together*chunk)
	for {
		work := make([]*piece, 0, together)
		select {
		case p := <-f.queue:
			work = append(work, p)
		case <-f.a.ctx.Done():
			return
		}
		for more := true; more && len(work) < together; {
			select {
			case p := <-f.queue:
				work = append(work, p)
			default:
				more = false
			}
		}
		batch = f.batch(work, ops, batch[:0])
		var err error
		if len(batch) > 0 {
			// Nobody is above this goroutine: a panic would end the process.
			err = kvstore.Contain(func() error { return f.round(&ch, batch) })
			if kvstore.LogPanic(f.a.store.cfg.Log, "reading ahead", err) {
				// Until it is closed it may still read into the places of the batch.
				f.close(ch)
				ch = nil
				f.pause()
			}
		}
		f.settle(work, batch, err)
	}
}

// round reads a batch, over a new channel if there is none.
func (f *fetcher) round(ch *kvstore.Channel, batch []*kvstore.Op) error {
	if *ch == nil {
		opened, err := f.a.store.inner.Channel(f.a.ctx)
		if err != nil {
			f.pause()
			return err
		}
		*ch = opened
	}
	f.fetch(*ch, batch)
	return nil
}

// close closes the channel of a fetcher, if it has one.
func (f *fetcher) close(ch kvstore.Channel) {
	if ch != nil {
		err := kvstore.Contain(ch.Close)
		kvstore.LogPanic(f.a.store.cfg.Log, "closing a channel of read-ahead", err)
	}
}

// batch makes the operations of the pieces whose streams still go on. They read
// into the cache itself.
func (f *fetcher) batch(work []*piece, ops []kvstore.Op, batch []*kvstore.Op) []*kvstore.Op {
	paused := int64(time.Since(epoch)) < f.until.Load()
	for _, p := range work {
		if paused || p.stream.generation.Load() != p.generation {
			continue
		}
		for i := range p.n {
			op := &ops[len(batch)]
			*op = kvstore.Op{Code: kvstore.Read, Key: kvstore.Key{Layer: p.id, Number: p.numbers[i]}, Seed: p.seed,
				Data: f.a.store.table.data(p.slots[i])}
			batch = append(batch, op)
		}
	}
	return batch
}

// fetch reads a batch, not for ever.
func (f *fetcher) fetch(ch kvstore.Channel, batch []*kvstore.Op) {
	ctx, cancel := context.WithTimeout(f.a.ctx, fetchTime)
	defer cancel()
	begin := time.Now()
	ch.Do(ctx, batch)
	d := int64(time.Since(begin))
	if ctx.Err() != nil {
		f.pause()
		return
	}
	if old := f.took.Load(); old != 0 {
		d = old + (d-old)/8
	}
	f.took.Store(d)
}

// pause has nothing read ahead from the server for a while.
func (f *fetcher) pause() { f.until.Store(int64(time.Since(epoch) + fetchPause)) }

// settle publishes what was read, gives up what was not, and wakes who waits.
func (f *fetcher) settle(work []*piece, batch []*kvstore.Op, err error) {
	t := f.a.store.table
	for _, p := range work {
		absent := 0
		for i := range p.n {
			k := kvstore.Key{Layer: p.id, Number: p.numbers[i]}
			if err != nil || len(batch) == 0 || batch[0].Key != k {
				t.release(p.slots[i]) // not asked for
				continue
			}
			op := batch[0]
			batch = batch[1:]
			switch {
			case op.Err == nil:
				f.a.read.Add(1)
				t.publish(p.slots[i])
				continue
			case errors.Is(op.Err, kvstore.ErrAbsent):
				absent++
			case errors.Is(op.Err, kvstore.ErrServerLost):
				f.a.store.layers.dropAll()
			}
			t.release(p.slots[i])
		}
		if absent > p.n/2 {
			p.stream.giveUp(p.generation)
		}
		f.a.wake(p.numbers[0])
		f.free <- p
	}
}

// giveUp stops a stream that leads to where nothing is, if it is still the one.
func (st *stream) giveUp(generation uint32) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.generation.Load() == generation {
		st.stop()
	}
}

// stripe is where reads wait for chunks that are being read ahead.
type stripe struct {
	sleepers atomic.Bool
	mu       sync.Mutex
	gate     chan struct{} // guarded by mu; closed to wake all
	_        [40]byte      // a cache line each
}

func (a *ahead) stripe(number uint64) *stripe { return &a.stripes[number/chunk%uint64(len(a.stripes))] }

// wake wakes who waits for blocks of the chunk of a block.
func (a *ahead) wake(number uint64) {
	s := a.stripe(number)
	if !s.sleepers.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sleepers.Store(false)
	if s.gate != nil {
		close(s.gate)
		s.gate = nil
	}
}

// grace is how long a read waits for a block that is being read ahead.
func (a *ahead) grace(k kvstore.Key) time.Duration {
	number := a.place.Server(k)
	if number < 0 || number >= len(a.servers) {
		return minGrace
	}
	return min(max(graceFactor*time.Duration(a.servers[number].took.Load()), minGrace), maxGrace)
}

// await waits for the blocks of a batch that are being read ahead, answers what
// came, and leaves the rest to be handed on.
func (c *channel) await() {
	t := c.store.table
	var until time.Time
	for _, op := range c.waits {
		p := t.place(op.Key)
		if until.IsZero() {
			until = time.Now().Add(c.store.ahead.grace(op.Key))
		}
		if !c.store.inner.Silent(op.Key) {
			c.wait(p, op.Key, until)
		}
		if !c.cached(op.Key.Layer) {
			c.count.misses.Add(1)
			c.on = append(c.on, op)
			continue
		}
		slot, word, found := t.find(p, op.Key)
		if found && t.ways[slot].epoch.Load() == c.layer.epoch.Load() && c.copyOut(op, slot, word) {
			c.window.hit()
			continue
		}
		// Was it given up, the block has no place any more and gets one again; is it
		// still under way, its place is the fetcher's.
		c.miss(op, p)
	}
	clear(c.waits)
	c.waits = c.waits[:0]
}

// wait returns when a block is not being read ahead any more, or at the time
// given.
func (c *channel) wait(p place, k kvstore.Key, until time.Time) {
	s := c.store.ahead.stripe(k.Number)
	for {
		// Who publishes does so first and looks for sleepers then; so we say that we
		// sleep before we look at what there is.
		s.mu.Lock()
		if s.gate == nil {
			s.gate = make(chan struct{})
		}
		gate := s.gate
		s.sleepers.Store(true)
		s.mu.Unlock()
		if _, word, ok := c.store.table.find(p, k); !ok || word&(stateMask|aheadBit) != filling|aheadBit {
			return
		}
		left := time.Until(until)
		if left <= 0 {
			return
		}
		if c.timer == nil {
			c.timer = time.NewTimer(left)
		} else {
			c.timer.Reset(left)
		}
		select {
		case <-gate:
			c.timer.Stop()
		case <-c.timer.C:
			return
		}
	}
}
