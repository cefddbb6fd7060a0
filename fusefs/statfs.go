package fusefs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
)

// usageAge keeps storms of statfs away from the store; usageWait is how long one
// statfs waits for it.
const (
	usageAge  = time.Second
	usageWait = 2 * time.Second
)

// usage is the size and use of the store as last read.
type usage struct {
	read func(ctx context.Context) (kvstore.Usage, error) // nil: unknown

	mu   sync.Mutex // guards what follows, and is held while reading: one at a time
	last kvstore.Usage
	at   time.Time
}

// get returns the last usage if the store does not answer: STATFS must never
// fail, since a loop device that is attached without it does not discard.
func (u *usage) get(ctx context.Context) kvstore.Usage {
	if u.read == nil {
		return kvstore.Usage{}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.at.IsZero() && time.Since(u.at) < usageAge {
		return u.last
	}
	ctx, cancel := context.WithTimeout(ctx, usageWait)
	defer cancel()
	if got, err := u.read(ctx); err == nil {
		u.last = got
	}
	u.at = time.Now()
	return u.last
}

// sizeOfUnknown is what STATFS shows as free where the store does not know: 1 TiB.
const sizeOfUnknown = 1 << 40

// StatFs shows the store's size and use. It never fails and always says a block
// size of 4096: loop devices take it as the granularity of discards.
func (t *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	defer t.other()()
	u := t.usage.get(t.s.ctx)
	used, capacity := max(u.Used, 0), u.Capacity
	if capacity <= 0 {
		capacity = used + sizeOfUnknown
	}
	free := uint64(max(capacity-used, 0)) / kvstore.BlockSize
	t.mu.Lock()
	files := uint64(len(t.byName))
	t.mu.Unlock()
	*out = fuse.StatfsOut{
		Blocks: uint64(capacity) / kvstore.BlockSize, Bfree: free, Bavail: free,
		Files: files + 1<<20, Ffree: 1 << 20, // names are not what runs out
		Bsize: kvstore.BlockSize, Frsize: kvstore.BlockSize, NameLen: maxName,
	}
	return fuse.OK
}
