package fusefs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// closer closes volumes in the background, each with as many tries as it takes:
// a volume whose last close fails has data that is not stable yet, and its lease.
type closer struct {
	log func(format string, args ...any)
	// ctx ends when Server.Close gives up waiting.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards what follows
	busy   int        // closings under way
	idle   chan struct{}
	failed map[*volume.Volume]failedClose // given up; the next wait tries again
	// trying has, by name, why the last try failed of what is tried again.
	trying map[string]error
	// ended has, by name, why a volume is closed though its last close failed. It
	// stays: no later close can say it.
	ended map[string]error
}

type failedClose struct {
	refs int // that were not dropped
	err  error
}

// Between two tries of a close.
const (
	closeRetryMin = 200 * time.Millisecond
	closeRetryMax = 10 * time.Second
)

func (c *closer) init(log func(string, ...any)) {
	c.log = log
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.failed = make(map[*volume.Volume]failedClose)
	c.trying = make(map[string]error)
	c.ended = make(map[string]error)
}

// add drops one reference of v in the background.
func (c *closer) add(v *volume.Volume) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begin(v)
}

// begin starts a closing. c.mu is held.
func (c *closer) begin(v *volume.Volume) {
	if c.busy == 0 {
		c.idle = make(chan struct{})
	}
	c.busy++
	go c.run(c.ctx, v)
}

func (c *closer) run(ctx context.Context, v *volume.Volume) {
	wait := closeRetryMin
	var err error
	for {
		err = kvstore.Contain(func() error { return v.Close(ctx) })
		kvstore.LogPanic(c.log, "closing "+v.Name(), err)
		if err == nil || ctx.Err() != nil || errors.Is(err, kvstore.ErrClosed) {
			break // ErrClosed: the whole set was closed before us
		}
		if ClosedForGood(err) {
			c.log("closed %s, which has lost data or its lease: %v", v.Name(), err)
			break
		}
		c.log("closing %s failed, trying again: %v", v.Name(), err)
		c.mu.Lock()
		c.trying[v.Name()] = err
		c.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, closeRetryMax)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.trying, v.Name())
	switch {
	case err == nil:
	case ClosedForGood(err):
		if c.ended[v.Name()] == nil {
			c.ended[v.Name()] = err
		}
	default:
		f := c.failed[v]
		c.failed[v] = failedClose{f.refs + 1, err}
	}
	if c.busy--; c.busy == 0 {
		close(c.idle)
	}
}

// ClosedForGood says whether volumes are closed though their Close failed, without
// their lease or what a server lost: nothing that could still be tried would help
// (volume.Close).
func ClosedForGood(err error) bool {
	return errors.Is(err, pool.ErrHeld) || errors.Is(err, kvstore.ErrServerLost)
}

// Closing says why a volume that nobody uses any more is not closed yet; nil: no try
// has failed so far. It waits for nothing.
func (s *Server) Closing() error { return s.closer.trouble() }

func (c *closer) trouble() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.trying)) {
		return fmt.Errorf("closing %s: %w", name, c.trying[name])
	}
	return nil
}

// wait returns when all closings have ended. Those that were given up before are
// tried again; when ctx ends first the others are given up and the first error
// is returned. Once all are closed it says what was lost, each time anew.
func (c *closer) wait(ctx context.Context) error {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.ctx, c.cancel = context.WithCancel(context.Background())
	}
	for v, f := range c.failed {
		for range f.refs {
			c.begin(v)
		}
	}
	clear(c.failed)
	busy, idle := c.busy, c.idle
	c.mu.Unlock()
	if busy > 0 {
		stop := context.AfterFunc(ctx, c.cancel)
		<-idle
		stop()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for v, f := range c.failed {
		return fmt.Errorf("closing %s: %w", v.Name(), f.err)
	}
	return c.loss()
}

// loss says which volumes were closed for good with an error; nil: none. c.mu is
// held.
func (c *closer) loss() error {
	names := slices.Sorted(maps.Keys(c.ended))
	if len(names) == 0 {
		return nil
	}
	more := ""
	if n := len(names) - 1; n > 0 {
		more = fmt.Sprintf("; and so were %d other volumes, which the log names", n)
	}
	return fmt.Errorf("volume %s was closed, and what no flush had made stable may be lost: %w%s", names[0], c.ended[names[0]], more)
}
