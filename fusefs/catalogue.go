package fusefs

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// listAge is how old the list of volumes may be when it answers LOOKUP and
// GETATTR: short enough for people, long enough that a look at many files reads
// the catalogue once. READDIR reads it anew, so that `ls` never lacks what the
// command before it made.
const listAge = 200 * time.Millisecond

// catalogue is the list of volumes that are ready and served, as last read. Many
// requests that want it at once cost one reading.
type catalogue struct {
	read func(ctx context.Context) ([]volume.Info, error)
	only []string

	mu      sync.Mutex // guards what follows; not held while reading
	infos   []volume.Info
	at      time.Time     // when the reading of infos began; zero: never, or forgotten
	reading chan struct{} // closed when the reading in progress ends; nil: none
	err     error         // of the last reading
	changes uint64        // how often it was forgotten
}

// list returns the volumes; the caller must not change them. maxAge is how long
// ago they may have been read; 0: the reading begins after the call.
func (c *catalogue) list(ctx context.Context, maxAge time.Duration) ([]volume.Info, error) {
	called := time.Now()
	c.mu.Lock()
	for {
		if !c.at.IsZero() && (c.at.After(called) || called.Sub(c.at) < maxAge) {
			defer c.mu.Unlock()
			return c.infos, c.err
		}
		if c.reading == nil {
			break
		}
		wait := c.reading
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		c.mu.Lock()
	}
	done := make(chan struct{})
	c.reading = done
	began, changes := time.Now(), c.changes
	c.mu.Unlock()

	infos, err := c.read(ctx)
	infos = slices.DeleteFunc(infos, func(i volume.Info) bool { return i.State != pool.Ready || !c.serves(i.Name) })

	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading, c.at, c.err = nil, began, err
	if c.changes != changes {
		c.at = time.Time{} // it may have been read before what changed
	}
	if err == nil {
		c.infos = infos
	}
	close(done)
	return c.infos, err
}

// serves says whether Options.Only lets a name through.
func (c *catalogue) serves(name string) bool {
	return len(c.only) == 0 || slices.Contains(c.only, name)
}

// find returns one volume. A name that the list does not have is looked for
// once more in a fresh one, so that a volume is there the moment it was made.
func (c *catalogue) find(ctx context.Context, name string) (volume.Info, bool, error) {
	var infos []volume.Info
	var err error
	for _, age := range []time.Duration{listAge, 0} {
		infos, err = c.list(ctx, age)
		if i := slices.IndexFunc(infos, func(i volume.Info) bool { return i.Name == name }); i >= 0 {
			return infos[i], true, nil
		}
		if err != nil {
			break
		}
	}
	return volume.Info{}, false, err
}

// forget makes the next list read anew, also if a reading is under way: we know that
// something changed.
func (c *catalogue) forget() {
	c.mu.Lock()
	c.at = time.Time{}
	c.changes++
	c.mu.Unlock()
}
