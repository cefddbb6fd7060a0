package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

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
	broken   bool         // a panic cut it off: wreck
	fresh    bool         // no round was worked yet
	sent     bool         // Try of the channel left operations
	fenced   *Volume      // its lease has to be waited for
	later    [][]*Request // groups to be served after this one
	again    []*Request   // bystanders of an abort, which begin anew

	slots   []slot
	free    []*slot
	active  []*slot
	ops     []*kvstore.Op
	scratch [][]byte // free blocks for partial access
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
		w.slots[i].claim = -1
		w.free = append(w.free, &w.slots[i])
	}
	return w, nil
}

// Close closes the worker's channel.
func (w *Worker) Close() error {
	if w.broken {
		return nil // wreck did
	}
	return w.ch.Close()
}

// Do serves the requests and returns when each has its result. At most 32 blocks (16 of a write)
// of one request go into one batch of the store, in turn, so that large requests
// do not hold small ones up. Requests of one call may be done in any order, as
// a disk's queue.
//
// A panic below is not contained here, but when it arrives at the caller (of Try
// and Finish too) nothing is held any more. Requests without a result have failed
// then, whatever their Err says, and the worker must be closed.
func (w *Worker) Do(ctx context.Context, reqs []*Request) {
	if !w.Try(ctx, reqs) {
		w.Finish(ctx)
	}
}

// Try is Do for a caller that has others to serve: it does not stay for servers
// that are silent, nor for the claims of blocks whose operations wait for such.
// After false the requests whose Left is set are still under way; they belong to
// the worker, as do their buffers, and the only calls allowed are Finish, LetGo, and
// Try without requests: it goes on with what is left until more of it has its result,
// or for some 100 ms, and returns true when all has.
func (w *Worker) Try(ctx context.Context, reqs []*Request) bool {
	if len(reqs) == 0 && (w.njobs > 0 || len(w.later) > 0) {
		return (w.njobs == 0 || w.goOn(looks)) && w.next(ctx, leaves)
	}
	for len(reqs) > MaxRequests {
		w.Do(ctx, reqs[:MaxRequests])
		reqs = reqs[MaxRequests:]
	}
	if mixed(reqs) {
		w.later = groups(reqs)
		return w.next(ctx, leaves)
	}
	return w.serve(ctx, reqs, leaves) && w.next(ctx, leaves)
}

// Finish goes on with what Try left, until each request has its result. Any
// goroutine may call it; then the worker is free again.
func (w *Worker) Finish(ctx context.Context) {
	if w.njobs > 0 {
		w.goOn(stays)
	}
	w.next(ctx, stays)
}

// until is when a worker returns, if not with all results.
type until uint8

const (
	stays  until = iota // never
	leaves              // once it would wait for a server that is silent, or for who waits for one
	looks               // the same, but of what was left: it waits for a moment before
)

// timeoutOf is how long a request may wait for a server, 0 for ever.
func timeoutOf(r *Request) int64 {
	if r.Vol == nil {
		return 0
	}
	return r.Vol.timeout.Load()
}

func mixed(reqs []*Request) bool {
	for _, r := range reqs[min(1, len(reqs)):] {
		if timeoutOf(r) != timeoutOf(reqs[0]) {
			return true
		}
	}
	return false
}

// groups parts requests of volumes with different timeouts, to be served one
// group after the other: the shortest timeout first, and last what waits for ever.
func groups(reqs []*Request) (all [][]*Request) {
	by := make(map[int64][]*Request)
	for _, r := range reqs {
		r.Left = true
		t := timeoutOf(r)
		by[t] = append(by[t], r)
	}
	for _, t := range slices.Sorted(maps.Keys(by)) {
		if t != 0 {
			all = append(all, by[t])
		}
	}
	if forever := by[0]; forever != nil {
		all = append(all, forever)
	}
	return all
}

// next serves the groups that are left; unless it stays it may return false.
func (w *Worker) next(ctx context.Context, until until) bool {
	for {
		if len(w.again) > 0 {
			w.later, w.again = append(w.later, w.again), nil
		}
		if len(w.later) == 0 {
			break
		}
		reqs := w.later[0]
		w.later = w.later[1:]
		if !w.serve(ctx, reqs, until) {
			return false
		}
	}
	w.later = nil
	return true
}

// serve serves requests that wait equally long. Unless it stays it may return false:
// then goOn has to follow.
func (w *Worker) serve(parent context.Context, reqs []*Request, until until) bool {
	w.patience.start(parent, reqs)
	begun := false
	defer func() {
		if !begun {
			w.wreck()
		}
	}()
	for _, r := range reqs {
		r.Left, r.Again = false, false
		w.begin(w.patience, r)
	}
	w.fresh, begun = true, true
	return w.goOn(until)
}

// goOn works in rounds until all jobs are done; unless it stays it may return false
// with some of them left.
func (w *Worker) goOn(until until) (done bool) {
	done = true // unless a round says otherwise: a panic ends the patience too
	whole := false
	defer func() {
		if !whole {
			w.wreck()
		}
		if done {
			w.patience = w.patience.stop()
		}
	}()
	done, whole = w.rounds(until), true
	return done
}

// rounds is goOn's work.
func (w *Worker) rounds(until until) (done bool) {
	ctx := w.patience
	for {
		if w.sent && !w.receive(ctx, until) {
			return w.leave()
		}
		if w.fenced != nil {
			if until == leaves {
				return w.leave()
			}
			w.afterFence(ctx, w.fenced, until)
			w.fenced = nil
		}
		if !w.fresh && ctx.Err() != nil {
			w.giveUp(ctxErr(ctx))
		}
		w.fresh = false
		w.admit(ctx)
		if len(w.active) == 0 {
			break
		}
		w.prepare(ctx)
		if len(w.ops) == 0 {
			if was := len(w.active); w.compact() == was && !w.park(ctx, until) {
				return w.leave()
			}
			continue
		}
		if until == stays {
			w.ch.Do(ctx, w.ops)
		} else if !w.ch.Try(ctx, w.ops) {
			w.sent = true
			w.settle(ctx) // what the lease held up is tried again, and finds it again
			return w.leave()
		}
		w.fenced = w.settle(ctx)
		if until == looks {
			until = leaves // it has waited
		}
	}
	if until == leaves && w.doubts() || !w.believe(ctx, until) {
		return w.leave()
	}
	w.flush(ctx)
	w.finish(false)
	return true
}

// leave gives those requests their results that are done and marks the others.
func (w *Worker) leave() (done bool) {
	w.finish(true)
	return false
}

// receive takes results of what the channel has left; false if some are missing still.
func (w *Worker) receive(ctx context.Context, until until) bool {
	if until == stays {
		w.ch.Finish(ctx)
		w.sent = false
	} else {
		w.sent = !w.ch.Try(ctx, nil)
	}
	w.fenced = w.settle(ctx)
	return !w.sent
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
	if v.aborted.Load() {
		j.err = ErrVolumeAborted
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
	j.next, j.end = r.done, j.cut.blocks()
	if r.Kind == Discard || r.Kind == Zero {
		j.end = j.cut.edges()
		j.err = w.discard(ctx, j)
		if j.err != nil {
			j.end = 0
		}
	}
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

// parkLimit is how long a worker that has others to serve waits for a claim:
// longer than a round trip takes. Who holds one for longer waits for a server.
const parkLimit = 20 * time.Millisecond

// lookLimit is for how long a worker waits, for claims and leases, before it looks
// whether something else of what was left can go on.
const lookLimit = 100 * time.Millisecond

// park sleeps until the first block that waits may go on. No claim is held. Unless it
// stays it is false when that took too long.
func (w *Worker) park(ctx context.Context, until until) bool {
	if len(w.active) == 0 {
		return true
	}
	if until != stays {
		limit := parkLimit
		if until == looks {
			limit = lookLimit
		}
		limited, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		s := w.active[0]
		if w.parkOn(limited, s); limited.Err() != nil && ctx.Err() == nil {
			return false
		}
		return true
	}
	w.parkOn(ctx, w.active[0])
	return true
}

func (w *Worker) parkOn(ctx context.Context, s *slot) {
	if s.wait != nil {
		select {
		case <-s.wait:
			s.wait = nil
		case <-ctx.Done():
		}
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
		if j.req == nil || j.req.Kind != Flush || j.err != nil {
			continue
		}
		shared := false
		for k := range i {
			if o := &w.jobs[k]; o.req != nil && o.req.Kind == Flush && o.vol == j.vol {
				j.err, shared = o.err, true
				break
			}
		}
		if !shared {
			j.err = j.vol.flush(ctx, w.ch)
		}
	}
}

// finish gives the requests their results: all of them, or with left those that
// are done, marking the others.
func (w *Worker) finish(left bool) {
	for i := range w.njobs {
		j := &w.jobs[i]
		switch {
		case j.req == nil:
			continue // done before
		case left && (j.inUse > 0 || j.doubtful() || j.next < j.end || j.req.Kind == Flush && j.err == nil):
			j.req.Left = true
			continue
		}
		if w.bystander(j) {
			j.req.Left = true
			w.again = append(w.again, j.req)
			j.vol.use.leave()
			*j = job{}
			continue
		}
		if j.vol != nil && errors.Is(j.err, kvstore.ErrAborted) && j.vol.aborted.Load() {
			j.err = ErrVolumeAborted
		}
		j.req.Err, j.req.Left, j.req.done = j.err, false, 0
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
	if !left {
		w.njobs = 0
	}
}

func (w *Worker) takeScratch() []byte {
	if n := len(w.scratch); n > 0 {
		b := w.scratch[n-1]
		w.scratch = w.scratch[:n-1]
		return b
	}
	return make([]byte, kvstore.BlockSize)
}
