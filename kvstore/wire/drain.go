package wire

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Helpers are goroutines beside the data path that end with a store.
type Helpers struct {
	*group
	what string // they do, for the log of a panic
}

// group is all helpers of a store.
type group struct {
	life context.Context
	end  context.CancelFunc
	log  func(format string, args ...any)
	wg   sync.WaitGroup
	held atomic.Int32 // Holds of all servers together
}

// NewHelpers returns an empty group; log receives what goes wrong in them.
func NewHelpers(log func(format string, args ...any)) *Helpers {
	g := &group{log: log}
	g.life, g.end = context.WithCancel(context.Background())
	return &Helpers{g, "looking after servers"}
}

// For returns the same helpers; what goes wrong is logged with the name of a server.
func (h *Helpers) For(server string) *Helpers { return &Helpers{h.group, "looking after " + server} }

// Life ends with Close.
func (h *Helpers) Life() context.Context { return h.life }

// Go runs f until it returns; its context ends with Close. A panic in f is contained
// and logged.
func (h *Helpers) Go(f func(context.Context)) {
	h.wg.Add(1)
	go func() {
		defer h.wg.Done()
		err := kvstore.Contain(func() error { f(h.life); return nil })
		kvstore.LogPanic(h.log, h.what, err)
	}()
}

// Close ends the contexts of all helpers and waits for them.
func (h *Helpers) Close() {
	h.end()
	h.wg.Wait()
}

// Drain is the wait until a server is done with a connection of ours on which
// changes were left unanswered: what is queued there must not overwrite later data.
type Drain struct{ over chan struct{} }

// Done says whether the server is done.
func (d *Drain) Done() bool {
	select {
	case <-d.over:
		return true
	default:
		return false
	}
}

// Over is closed when the server is done.
func (d *Drain) Over() <-chan struct{} { return d.over }

// How long to ask a server that answers: a proxy, or a network that keeps half a
// connection alive, may never tell.
const (
	DrainPause = 20 * time.Millisecond // before asking again; it doubles up to a second
	DrainLimit = 10 * time.Second
)

// NewDrain runs wait beside the data path: the drain is over when it returns. It must
// return when its context ends.
func NewDrain(h *Helpers, wait func(context.Context)) *Drain {
	d := &Drain{make(chan struct{})}
	h.Go(func(ctx context.Context) {
		defer close(d.over)
		wait(ctx)
	})
	return d
}

// StartDrain asks again and again whether the server still has the connection, until
// it has not. asked returns whether it does, and whether it answered at all. A server that
// answers and does not let the connection go for DrainLimit ends the wait too, with
// a call of unproven.
func StartDrain(h *Helpers, asked func(context.Context) (has, answered bool), unproven func()) *Drain {
	return NewDrain(h, func(ctx context.Context) {
		var heard time.Time // when the server first answered
		for pause := DrainPause; ctx.Err() == nil; pause = min(2*pause, time.Second) {
			has, answered := asked(ctx)
			if answered && !has {
				return
			}
			if answered && heard.IsZero() {
				heard = time.Now()
			}
			if !heard.IsZero() && time.Since(heard) > DrainLimit {
				unproven()
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

// Holds keeps requests from a server while it may still execute something older:
//
//   - changes, after requests of this process were given up: their blocks are free for
//     other channels, and what is left of them must come before anything newer;
//   - reads as well, after another process of this machine was killed. What it was not
//     answered happened or did not; who has read what a block was before must not read
//     later that it happened after all, as no disk does that after a crash.
type Holds struct{ changes, all atomic.Int32 }

// Any says whether changes must wait.
func (h *Holds) Any() bool { return h.changes.Load() != 0 }

// Waits says whether a request must wait, which writes or does not.
func (h *Holds) Waits(writes bool) bool {
	return h.changes.Load() != 0 && (writes || h.all.Load() != 0)
}

// Until holds all changes until the drain is over.
func (h *Holds) Until(g *Helpers, d *Drain) { h.until(g, d, 0) }

// UntilAll holds everything until the drain is over.
func (h *Holds) UntilAll(g *Helpers, d *Drain) { h.until(g, d, 1) }

func (h *Holds) until(g *Helpers, d *Drain, all int32) {
	g.held.Add(1)
	h.all.Add(all)
	h.changes.Add(1)
	g.Go(func(context.Context) {
		<-d.Over()
		h.changes.Add(-1)
		h.all.Add(-all)
		g.held.Add(-1)
	})
}

// Holding says whether changes must wait for any server of the store.
func (h *Helpers) Holding() bool { return h.held.Load() != 0 }
