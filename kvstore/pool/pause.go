package pool

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// pause waits between the tries of a compare-and-swap loop: up to 1 ms after the
// first conflict and up to 64 ms after many, at random so that writers in step
// part. The first tries of few writers cost next to nothing.
func pause(ctx context.Context, try int) error {
	return sleep(ctx, rand.N(time.Millisecond<<min(try, 6)))
}

// sleep waits for d or for the end of ctx, whose end is ErrAborted or ErrTimeout.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// ended translates the end of a context into the store's words.
func ended(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}
