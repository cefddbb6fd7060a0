package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Break takes the lease of a volume from whoever holds it, the writer or all
// readers, and leaves it free. One that is not renewed is waited for until it has run out; one that is, is ErrHeld,
// unless force.
//
// With force the lease is taken from a holder that lives, and kept until the fence
// of that holder must have closed, so that the next holder begins after its last
// send. What the network then still delays arrives late all the same; no more than
// at any takeover, but the holder is known to have been writing.
func (p *Pool) Break(ctx context.Context, volume string, force bool) error {
	v, err := p.Volume(ctx, volume)
	if err != nil {
		return err
	}
	r, _, err := p.readLease(ctx, v.UUID)
	switch {
	case err != nil && !errors.Is(err, kvstore.ErrCorrupt):
		return err
	case err == nil && (r == nil || r.state() == leaseFree):
		return nil
	case err == nil && r.held && r.at == p.host && !force:
		return fmt.Errorf("%w: %s is held by process %d of this machine: if that is gone, the next open here takes over at once and recovers what it left, and there is nothing to break", ErrHeld, volume, r.pid)
	}
	l, err := p.Acquire(ctx, volume, LeaseOptions{steal: force})
	if err != nil {
		return err
	}
	l.fence.Close() // nobody writes under it
	if force && r != nil {
		ttl := r.ttl
		if !r.held {
			ttl = longestTTL(r)
		}
		err = sleep(ctx, ttl)
	}
	// Also when ctx ended: without a release it would be kept until it runs out.
	return errors.Join(err, l.Release(context.WithoutCancel(ctx)))
}
