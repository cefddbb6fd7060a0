package file

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// channel is one worker's way in. Used by one goroutine at a time.
type channel struct {
	store  *Store
	layer  *layer       // the last one used: most batches stay in one
	iov    []unix.Iovec // of the run in work; capacity MaxBatch, which is the kernel's IOV_MAX
	proven bool         // the sentinel was seen
	closed bool

	seen []uint32 // state of each block of the run before it was read

	// later holds the runs of the batch in work that must wait for the disk.
	later []span
}

// span is a range of the operations of a batch.
type span struct{ from, to int }

// Do executes the batch run by run. Reads that the page cache cannot answer are
// announced to the kernel and done in the end, so that the disk works on all of
// them at once and cached ones do not wait.
func (c *channel) Do(ctx context.Context, ops []*kvstore.Op) {
	if err := c.ready(ctx, len(ops)); err != nil {
		for _, op := range ops {
			op.Err = err
		}
		return
	}
	c.later = c.later[:0]
	for i := 0; i < len(ops); {
		op := ops[i]
		if op.Err = check(op); op.Err != nil {
			i++
			continue
		}
		if err := ended(ctx); err != nil {
			op.Err = err
			i++
			continue
		}
		// Once for a run, which has one fence: it costs a system call.
		if op.Code != kvstore.Read && !op.Fence.Passes() {
			op.Err = kvstore.ErrFenced
			i++
			continue
		}
		if op.Code == kvstore.Discard {
			op.Err = c.discard(op)
			i++
			continue
		}
		n := runLength(ops[i:])
		if op.Code == kvstore.Read && n < len(ops) && !c.readCached(ops[i:i+n]) {
			c.later = append(c.later, span{i, i + n})
		} else if op.Code == kvstore.Write || n == len(ops) {
			c.transfer(ops[i : i+n])
		}
		i += n
	}
	for _, r := range c.later {
		c.transfer(ops[r.from:r.to])
	}
}

// Try implements kvstore.Channel: a local file system is never silent, only slow.
func (c *channel) Try(ctx context.Context, ops []*kvstore.Op) bool {
	c.Do(ctx, ops)
	return true
}

// Finish implements kvstore.Channel; Try leaves nothing.
func (c *channel) Finish(context.Context) {}

// readCached reads a run if that takes no waiting. Else it is false, the results
// are not set, and the kernel has begun to read.
func (c *channel) readCached(run []*kvstore.Op) bool {
	l, err := c.use(run[0].Key.Layer)
	if err != nil {
		return false // transfer finds it again and says so
	}
	defer l.mu.RUnlock()
	if l.noWait.Load() {
		return false
	}
	c.fill(run)
	off, size := int64(run[0].Key.Number)*kvstore.BlockSize, len(run)*kvstore.BlockSize
	c.look(l, run)
	n, err := preadvCached(l.fd, c.iov, off)
	if n == size {
		c.lookAgain(l, run)
	}
	clear(c.iov)
	switch {
	case n == size:
		return true
	case err == unix.EOPNOTSUPP || err == unix.ENOSYS || err == unix.EINVAL:
		l.noWait.Store(true)
		return false
	}
	_ = unix.Fadvise(l.fd, off, int64(size), unix.FADV_WILLNEED) // a hint: transfer reads in any case
	return false
}

// fill makes the iovecs of a run, and its results success until one fails.
func (c *channel) fill(run []*kvstore.Op) {
	c.iov = c.iov[:0]
	for _, op := range run {
		var v unix.Iovec
		v.Base = &op.Data[0]
		v.SetLen(kvstore.BlockSize)
		c.iov = append(c.iov, v)
		op.Err = nil
	}
}

// ready says why no operation of a batch of n can be done.
func (c *channel) ready(ctx context.Context, n int) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	if n > kvstore.MaxBatch {
		return kvstore.ErrInvalid
	}
	if err := c.store.usable(ctx); err != nil {
		return err
	}
	if !c.proven {
		if err := c.store.checkSentinel(); err != nil {
			return err
		}
		c.proven = true
	}
	return nil
}

// check says whether an operation keeps to the contract.
func check(op *kvstore.Op) error {
	switch op.Code {
	case kvstore.Read:
		if len(op.Data) != kvstore.BlockSize {
			return kvstore.ErrInvalid
		}
		if op.Versioned {
			return kvstore.ErrUnsupported
		}
	case kvstore.Write:
		if len(op.Data) != kvstore.BlockSize || op.Expect > kvstore.Same {
			return kvstore.ErrInvalid
		}
		if op.Expect != kvstore.Any {
			return kvstore.ErrUnsupported
		}
	case kvstore.Discard:
	default:
		return kvstore.ErrInvalid
	}
	switch {
	case op.Key.Number > maxBlocks-max(uint64(op.Count), 1):
		return kvstore.ErrInvalid
	case op.Key.Kind != kvstore.KindBlock:
		return kvstore.ErrUnsupported // presence is the file's own, so there is no map
	}
	return nil
}

// runLength returns how many operations from the first on are neighbours that
// one system call can serve. The first one was checked.
func runLength(ops []*kvstore.Op) int {
	first := ops[0]
	n := 1
	for n < len(ops) {
		op := ops[n]
		if op.Code != first.Code || op.Key.Layer != first.Key.Layer ||
			op.Key.Number != first.Key.Number+uint64(n) || op.Fence != first.Fence || check(op) != nil {
			break
		}
		n++
	}
	return n
}

// use returns the layer of a key with its file held open: the caller unlocks
// mu. After an error nothing is held.
func (c *channel) use(id kvstore.LayerID) (*layer, error) {
	for {
		l := c.layer
		if l == nil || l.id != id {
			var err error
			if l, err = c.store.layer(id); err != nil {
				return nil, err
			}
			c.layer = l
		}
		l.mu.RLock()
		if l.fd >= 0 {
			return l, nil
		}
		l.mu.RUnlock() // removed or closed since: ask the store again, which knows
		c.layer = nil
	}
}

// transfer reads or writes a run of neighbours and gives each its result.
func (c *channel) transfer(run []*kvstore.Op) {
	l, err := c.use(run[0].Key.Layer)
	if err != nil {
		for _, op := range run {
			op.Err = c.opError(op, err)
		}
		return
	}
	defer l.mu.RUnlock()
	c.fill(run)
	if run[0].Code == kvstore.Read {
		c.look(l, run)
		c.read(l, run)
		c.lookAgain(l, run)
	} else {
		first, n := run[0].Key.Number, uint64(len(run))
		l.begin(first, n)
		defer l.end(first, n) // also if it panics: reads would wait for ever
		c.write(l, run)
	}
	clear(c.iov) // the buffers are the caller's again
}

// read fills the run's buffers. Where a read fails only its block does: the
// next call begins behind it.
func (c *channel) read(l *layer, run []*kvstore.Op) {
	base := int64(run[0].Key.Number) * kvstore.BlockSize
	for done := 0; done < len(run)*kvstore.BlockSize; {
		n, err := preadv(l.fd, c.rest(run, done), base+int64(done))
		switch {
		case err != nil:
			at := done / kvstore.BlockSize
			run[at].Err = c.opError(run[at], classify(err, kvstore.ErrCorrupt))
			done = (at + 1) * kvstore.BlockSize
		case n == 0: // the end of the file: what follows was never written
			for ; done < len(run)*kvstore.BlockSize; done = (done/kvstore.BlockSize + 1) * kvstore.BlockSize {
				clear(run[done/kvstore.BlockSize].Data[done%kvstore.BlockSize:])
			}
		default:
			done += n
		}
	}
}

// write stores the run's buffers; a failure is one block's, as in read.
func (c *channel) write(l *layer, run []*kvstore.Op) {
	base := int64(run[0].Key.Number) * kvstore.BlockSize
	for done := 0; done < len(run)*kvstore.BlockSize; {
		at := done / kvstore.BlockSize
		if done > 0 && done%kvstore.BlockSize == 0 && !run[at].Fence.Passes() {
			run[at].Err = kvstore.ErrFenced
			done += kvstore.BlockSize
			continue
		}
		n, err := pwritev(l.fd, c.rest(run, done), base+int64(done))
		if err == nil {
			done += n
			continue
		}
		err = classify(err, kvstore.ErrUnreachable)
		if done%kvstore.BlockSize != 0 && errors.Is(err, kvstore.ErrFull) {
			// Only where the file system's blocks are smaller than ours: part of
			// the block was stored, so this is not "old value untouched".
			err = kvstore.ErrUnreachable
		}
		run[at].Err = c.opError(run[at], err)
		done = (at + 1) * kvstore.BlockSize
	}
}

// rest returns the buffers of a run from byte done on.
func (c *channel) rest(run []*kvstore.Op, done int) []unix.Iovec {
	at, within := done/kvstore.BlockSize, done%kvstore.BlockSize
	if within != 0 {
		c.iov[at].Base = &run[at].Data[within]
		c.iov[at].SetLen(kvstore.BlockSize - within)
	}
	return c.iov[at:]
}

// discard punches a hole. Behind the end of the file there is one already.
func (c *channel) discard(op *kvstore.Op) error {
	l, err := c.use(op.Key.Layer)
	if err == errRemoved {
		return nil
	}
	if err != nil {
		return c.opError(op, err)
	}
	defer l.mu.RUnlock()
	off := int64(op.Key.Number) * kvstore.BlockSize
	count := max(uint64(op.Count), 1)
	size := int64(count) * kvstore.BlockSize
	if !l.noPunch.Load() {
		err = l.punch(op.Key.Number, count)
		if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
			l.noPunch.Store(true)
		}
	}
	for done := int64(0); l.noPunch.Load() && done < size; done += edge * kvstore.BlockSize {
		n := min(size-done, edge*kvstore.BlockSize)
		first := op.Key.Number + uint64(done)/kvstore.BlockSize
		l.begin(first, uint64(n)/kvstore.BlockSize)
		err = zero(l.fd, off+done, n)
		l.end(first, uint64(n)/kvstore.BlockSize)
		if err != nil {
			break
		}
	}
	if err != nil {
		return c.opError(op, classify(err, kvstore.ErrUnreachable))
	}
	return nil
}

// Flush proves that the directory is still the one that was joined, and makes
// the layer stable.
func (c *channel) Flush(ctx context.Context, id kvstore.LayerID) error {
	if c.closed {
		return kvstore.ErrClosed
	}
	if err := c.store.usable(ctx); err != nil {
		return err
	}
	if err := c.store.checkSentinel(); err != nil {
		return err
	}
	l, err := c.store.layer(id)
	if err == nil {
		err = l.flush()
	}
	if err != nil {
		return c.store.failed("flush layer "+id.String(), "", err)
	}
	return nil
}

// Close ends the channel.
func (c *channel) Close() error {
	c.closed = true
	c.layer = nil
	return nil
}

func (c *channel) opError(op *kvstore.Op, err error) error {
	what := map[kvstore.Code]string{kvstore.Read: "read", kvstore.Write: "write", kvstore.Discard: "discard"}
	return &kvstore.OpError{Op: what[op.Code], Server: c.store.dir, Key: op.Key, Err: err}
}
