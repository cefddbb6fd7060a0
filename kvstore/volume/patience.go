package volume

import (
	"context"
	"sync"
	"time"
)

// patience is the context of the requests that a worker serves together: it ends
// with its parent, or once they have waited for longer than the timeouts of their
// volumes allow, or once one of the volumes is aborted. Those are looked at again and again, so that a change also counts
// for requests that wait already: who finds that everything hangs sets one.
//
// A worker uses the same one again and again, without an allocation, as long as
// nobody waits on Done, which the stores that poll do not.
type patience struct {
	context.Context // the parent
	began           time.Time
	vols            []*Volume // of the requests; not changed between start and stop

	mu   sync.Mutex    // guards what follows; a leaf
	err  error         // the first reason to end stays
	done chan struct{} // made by the first Done
	quit chan struct{} // closed by stop; made with done
	over chan struct{} // closed when the goroutine behind done is gone
}

// patienceStep bounds how late a timeout that was changed is noticed.
const patienceStep = 100 * time.Millisecond

// start begins to count for the volumes of reqs.
func (p *patience) start(ctx context.Context, reqs []*Request) {
	p.Context, p.began, p.err = ctx, time.Now(), nil
	for _, r := range reqs {
		if r.Vol != nil && (len(p.vols) == 0 || p.vols[len(p.vols)-1] != r.Vol) {
			p.vols = append(p.vols, r.Vol)
		}
	}
}

// stop ends it and returns the one for the next requests: itself, unless somebody
// waited on Done, as contexts made from it may look at it later.
func (p *patience) stop() *patience {
	p.mu.Lock()
	used := p.done != nil
	if used && p.err == nil {
		p.err = context.Canceled
	}
	p.mu.Unlock()
	if used {
		close(p.quit)
		<-p.over
		return new(patience)
	}
	clear(p.vols)
	p.vols = p.vols[:0]
	return p
}

// limit is the longest timeout of the volumes as they are now, 0 if one waits for
// ever.
func (p *patience) limit() (limit time.Duration) {
	for _, v := range p.vols {
		t := time.Duration(v.timeout.Load())
		if t == 0 {
			return 0
		}
		limit = max(limit, t)
	}
	return limit
}

// aborted says whether one of the volumes was given up.
func (p *patience) aborted() bool {
	for _, v := range p.vols {
		if v.aborted.Load() {
			return true
		}
	}
	return false
}

// Deadline implements context.Context; it may move.
func (p *patience) Deadline() (at time.Time, ok bool) {
	at, ok = p.Context.Deadline()
	if limit := p.limit(); limit > 0 {
		if own := p.began.Add(limit); !ok || own.Before(at) {
			return own, true
		}
	}
	return at, ok
}

// Err implements context.Context.
func (p *patience) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = p.Context.Err()
		if p.err == nil && p.aborted() {
			p.err = context.Canceled
		}
		if limit := p.limit(); p.err == nil && limit > 0 && time.Since(p.began) >= limit {
			p.err = context.DeadlineExceeded
		}
	}
	return p.err
}

// Done implements context.Context.
func (p *patience) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done, p.quit, p.over = make(chan struct{}), make(chan struct{}), make(chan struct{})
		go p.watch(p.Context.Done(), p.done, p.quit, p.over)
	}
	return p.done
}

// watch closes done when Err has something to say.
func (p *patience) watch(parent <-chan struct{}, done, quit, over chan struct{}) {
	defer close(over)
	for p.Err() == nil {
		wait := patienceStep
		if at, ok := p.Deadline(); ok {
			wait = min(wait, max(time.Until(at), time.Millisecond))
		}
		select {
		case <-time.After(wait):
		case <-parent:
		case <-quit:
		}
	}
	close(done)
}
