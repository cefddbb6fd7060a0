package fusefs

import (
	"context"
	"errors"
	"fmt"
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
	// ended is the first error of a volume that is closed all the same, for the
	// next wait to return.
	ended error
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
		if closedForGood(err) {
			c.log("closed %s, which has lost data or its lease: %v", v.Name(), err)
			break
		}
		c.log("closing %s failed, trying again: %v", v.Name(), err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, closeRetryMax)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
	case closedForGood(err):
		if c.ended == nil {
			c.ended = fmt.Errorf("closing %s: %w", v.Name(), err)
		}
	default:
		f := c.failed[v]
		c.failed[v] = failedClose{f.refs + 1, err}
	}
	if c.busy--; c.busy == 0 {
		close(c.idle)
	}
}

// closedForGood says whether a volume is closed though its Close failed: nothing
// that could still be tried would help (volume.Close).
func closedForGood(err error) bool {
	return errors.Is(err, pool.ErrHeld) || errors.Is(err, kvstore.ErrServerLost)
}

// wait returns when all closings have ended. Those that were given up before are
// tried again; when ctx ends first the others are given up and the first error
// is returned.
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
	err := c.ended
	c.ended = nil
	return err
}
