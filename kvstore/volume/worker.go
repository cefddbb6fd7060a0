package volume

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/kvbfs/kvbfs/kvstore"
)

// maxShare is how many blocks of one request travel in one batch.
const maxShare = 32

// Worker turns batches of requests into batches of block operations. One
// goroutine (or locked thread) uses it at a time; different workers run in
// parallel.
//
// It works in rounds. Each round admits blocks of the requests in turn, gives
// each block in work its next operation, sends all of them in one batch, and
// looks at the results (slot.go). A block whose claim is taken just has no
// operation in this round; when nothing at all has one, the worker holds no
// claim, and only then it sleeps.
type Worker struct {
	set   *Set
	id    uint32 // owner of claims
	ch    kvstore.Channel
	jobs  []job
	njobs int
	turn  int // the job that admits first

	patience *patience

	slots   []slot
	free    []*slot
	active  []*slot
	ops     []*kvstore.Op
	scratch [][]byte // free blocks for partial access
}

// job is one request in work.
type job struct {
	req   *Request
	vol   *Volume
	m     *presence // of vol when the request came in
	cut   parts
	next  uint64 // the block, of cut, to admit next
	end   uint64
	inUse int // slots
	err   error
}

// Worker opens a worker with a channel of its own.
func (s *Set) Worker(ctx context.Context) (*Worker, error) {
	ch, err := s.store.Channel(ctx)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		set: s, id: s.owner(), ch: ch, patience: new(patience),
		jobs:   make([]job, MaxRequests),
		slots:  make([]slot, kvstore.MaxBatch),
		free:   make([]*slot, 0, kvstore.MaxBatch),
		active: make([]*slot, 0, kvstore.MaxBatch),
		ops:    make([]*kvstore.Op, 0, kvstore.MaxBatch),
	}
	for i := range w.slots {
		w.free = append(w.free, &w.slots[i])
	}
	return w, nil
}

// Close closes the worker's channel.
func (w *Worker) Close() error { return w.ch.Close() }

// Do serves the requests and returns when each has its result. At most 32 blocks
// of one request go into one batch of the store, in turn, so that large requests
// do not hold small ones up. Requests of one call may be done in any order, as
// a disk's queue.
func (w *Worker) Do(ctx context.Context, reqs []*Request) {
	for len(reqs) > MaxRequests {
		w.Do(ctx, reqs[:MaxRequests])
		reqs = reqs[MaxRequests:]
	}
	var limit int64
	for i, r := range reqs {
		var t int64
		if r.Vol != nil {
			t = r.Vol.timeout.Load()
		}
		if i > 0 && t != limit {
			w.doGroups(ctx, reqs)
			return
		}
		limit = t
	}
	w.serve(ctx, reqs)
}

// doGroups serves requests of volumes with different timeouts, one timeout after
// the other: the shortest first, and last what waits for ever.
func (w *Worker) doGroups(ctx context.Context, reqs []*Request) {
	groups := make(map[int64][]*Request)
	for _, r := range reqs {
		var t int64
		if r.Vol != nil {
			t = r.Vol.timeout.Load()
		}
		groups[t] = append(groups[t], r)
	}
	for _, t := range slices.Sorted(maps.Keys(groups)) {
		if t != 0 {
			w.serve(ctx, groups[t])
		}
	}
	w.serve(ctx, groups[0])
}

// serve serves requests that wait equally long.
func (w *Worker) serve(parent context.Context, reqs []*Request) {
	ctx := w.patience
	ctx.start(parent, reqs)
	defer func() { w.patience = ctx.stop() }()
	for _, r := range reqs {
		w.begin(ctx, r)
	}
	for first := true; ; first = false {
		if !first && ctx.Err() != nil {
			w.giveUp(ctxErr(ctx))
		}
		w.admit(ctx)
		if len(w.active) == 0 {
			break
		}
		w.prepare(ctx)
		if len(w.ops) == 0 {
			if was := len(w.active); w.compact() == was {
				w.park(ctx)
			}
			continue
		}
		w.ch.Do(ctx, w.ops)
		w.settle(ctx)
	}
	w.flush(ctx)
	w.finish()
}

// begin checks a request, makes it a job and does what needs no block operation.
func (w *Worker) begin(ctx context.Context, r *Request) {
	j := &w.jobs[w.njobs]
	*j = job{req: r}
	w.njobs++
	v := r.Vol
	if v == nil {
		j.err = kvstore.ErrInvalid
		return
	}
	if !v.use.enter() {
		j.err = kvstore.ErrClosed
		return
	}
	// In this order: a volume that is opened for writing while it is read gets its
	// new map first, then the size that the map is made for, then the right to write.
	writable, size := v.writable.Load(), v.Size()
	j.vol, j.m = v, v.m.Load()
	n := r.N
	c := &v.counters
	switch r.Kind {
	case Read:
		n = int64(len(r.Data))
		c.reads.Add(1)
		c.readBytes.Add(uint64(n))
	case Write:
		n = int64(len(r.Data))
		c.writes.Add(1)
		c.writeBytes.Add(uint64(n))
	case Discard, Zero:
		c.discards.Add(1)
		c.discardBytes.Add(uint64(max(0, n)))
	case Flush:
		c.flushes.Add(1)
		return
	case Provision:
	default:
		j.err = kvstore.ErrInvalid
		return
	}
	switch {
	case r.Off < 0 || n < 0 || n > size || r.Off > size-n:
		j.err = ErrOutside
		return
	case r.Kind != Read && !writable:
		j.err = ErrReadOnly
		return
	case n == 0:
		return
	}
	if r.Kind == Provision {
		j.err = w.provision(j)
		return
	}
	j.cut = split(r.Off, n)
	j.end = j.cut.blocks()
	if r.Kind == Discard || r.Kind == Zero {
		j.end = j.cut.edges()
		j.err = w.discard(ctx, j)
		if j.err != nil {
			j.end = 0
		}
	}
}

// admit puts blocks into work, in turn: up to maxShare of each request.
func (w *Worker) admit(ctx context.Context) {
	if w.njobs == 0 {
		return
	}
	w.turn++
	for i := range w.njobs {
		j := &w.jobs[(w.turn+i)%w.njobs]
		for j.next < j.end && j.inUse < maxShare && len(w.free) > 0 {
			p := j.cut.block(j.next)
			if j.req.Kind == Discard || j.req.Kind == Zero {
				p = j.cut.edge(j.next)
			}
			j.next++
			w.admitPart(ctx, j, p)
		}
	}
}

// fail gives a request its error; what is not in work yet of it is left.
func (j *job) fail(err error) {
	if j.err == nil {
		j.err = err
	}
	j.next = j.end
}

// giveUp fails what is not sent yet: the context ended.
func (w *Worker) giveUp(err error) {
	for i := range w.njobs {
		if j := &w.jobs[i]; j.next < j.end {
			j.fail(err)
		}
	}
	for _, s := range w.active {
		w.done(s, err)
	}
	w.compact()
}

// park sleeps until the first block that waits may go on. No claim is held.
func (w *Worker) park(ctx context.Context) {
	if len(w.active) == 0 {
		return
	}
	s := w.active[0]
	if s.wait != nil {
		select {
		case <-s.wait:
		case <-ctx.Done():
		}
		s.wait = nil
		return
	}
	// Its error is the context's, which the next round looks at.
	_ = w.set.claims.wait(ctx, claimOf(s.job.vol.layer, s.lba))
}

// compact drops the slots that are done and returns how many are left.
func (w *Worker) compact() int {
	kept := w.active[:0]
	for _, s := range w.active {
		if s.phase != phaseDone {
			kept = append(kept, s)
		} else {
			w.free = append(w.free, s)
		}
	}
	w.active = kept
	return len(kept)
}

// flush serves the flushes of the batch, one per volume, after everything else.
func (w *Worker) flush(ctx context.Context) {
	for i := range w.njobs {
		j := &w.jobs[i]
		if j.req.Kind != Flush || j.err != nil {
			continue
		}
		shared := false
		for k := range i {
			if o := &w.jobs[k]; o.req.Kind == Flush && o.vol == j.vol {
				j.err, shared = o.err, true
				break
			}
		}
		if !shared {
			j.err = j.vol.flush(ctx, w.ch)
		}
	}
}

// finish gives the requests their results.
func (w *Worker) finish() {
	for i := range w.njobs {
		j := &w.jobs[i]
		j.req.Err = j.err
		if j.vol != nil {
			if j.err != nil {
				j.vol.counters.errs.Add(1)
				if errors.Is(j.err, kvstore.ErrServerLost) {
					j.vol.serverLost(j.err)
				}
			}
			j.vol.use.leave()
		}
		*j = job{}
	}
	w.njobs = 0
}

func (w *Worker) takeScratch() []byte {
	if n := len(w.scratch); n > 0 {
		b := w.scratch[n-1]
		w.scratch = w.scratch[:n-1]
		return b
	}
	return make([]byte, kvstore.BlockSize)
}
