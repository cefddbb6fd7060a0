package volume

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// reaper deletes the keys of discarded blocks in the background. A key goes only
// when the block's bit is off in memory and in the page that was stored last: so
// the reaper stores the page first, whether or not the file system flushes, and
// a discard frees room on a full store too.
type reaper struct {
	awake  atomic.Bool // it runs, or will look again
	mu     sync.Mutex
	stop   context.CancelFunc // guarded by mu; nil: never started
	kicks  chan struct{}      // guarded by mu until started
	over   chan struct{}      // closed when the goroutine is gone
	closed bool               // guarded by mu
}

const (
	// reapDelay lets discards that come in a row be deleted together.
	reapDelay = time.Second
	// reapRetry is the pause after a failure, and after a panic.
	reapRetry = 5 * time.Second
	// reapBatch is how many keys are deleted at once: small beside what a worker
	// sends, so deletions do not hold up the servers.
	reapBatch = 128
)

// kick says that there is something to delete. It costs one load if that is
// known already.
func (r *reaper) kick(v *Volume) {
	if r.awake.Load() || v.m.Load() == nil || r.awake.Swap(true) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		r.stop, r.kicks, r.over = stop, make(chan struct{}, 1), make(chan struct{})
		go v.reapInBackground(ctx, r.kicks, r.over)
	}
	select {
	case r.kicks <- struct{}{}:
	default:
	}
}

// halt ends the goroutine and waits for it; resume lets kick start it again.
func (r *reaper) halt() {
	r.mu.Lock()
	r.closed = true
	stop, over := r.stop, r.over
	r.stop = nil
	r.mu.Unlock()
	if stop != nil {
		stop()
		<-over
	}
}

func (r *reaper) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
	r.awake.Store(false)
}

func (v *Volume) reapInBackground(ctx context.Context, kicks <-chan struct{}, over chan<- struct{}) {
	defer close(over)
	var ch kvstore.Channel
	closeChannel := func() {
		if ch != nil {
			err := kvstore.Contain(ch.Close)
			kvstore.LogPanic(v.set.logf, "closing the reaper's channel", err)
			ch = nil
		}
	}
	defer closeChannel()
	for {
		select {
		case <-kicks:
		case <-ctx.Done():
			return
		}
		for delay := v.set.reapDelay; ; {
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
			// From here on a kick counts again: what is cleared later may be missed.
			v.reaper.awake.Store(false)
			err := kvstore.Contain(func() (err error) {
				if ch == nil {
					ch, err = v.set.store.Channel(ctx)
				}
				if err == nil {
					err = v.reap(ctx, ch)
				}
				return err
			})
			if kvstore.LogPanic(v.set.logf, fmt.Sprintf("deleting discarded blocks of volume %s", v.name), err) {
				closeChannel() // its state cannot be trusted
			}
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				if anyWord(v.m.Load().queued) {
					delay = v.set.reapDelay
					continue
				}
				break
			}
			v.set.logf("volume %s: deletion of discarded blocks is put off: %v", v.name, err)
			delay = v.set.reapRetry
		}
	}
}

// reap stores the pages that have discarded blocks and deletes those blocks.
func (v *Volume) reap(ctx context.Context, ch kvstore.Channel) error {
	m := v.m.Load()
	if m == nil {
		return nil
	}
	var failed error
	eachBit(m.queued, func(p uint64) bool {
		err := v.reapQueued(ctx, ch, m, p)
		if !errors.Is(err, errStale) {
			failed = err
		}
		return failed == nil
	})
	return failed
}

// reapQueued takes page p out of the queue and reaps it; unless that succeeds it is
// queued again.
func (v *Volume) reapQueued(ctx context.Context, ch kvstore.Channel, m *presence, p uint64) error {
	done := false
	defer func() {
		if !done {
			setBit(m.queued, p)
		}
	}()
	clearBit(m.queued, p)
	err := v.reapPage(ctx, ch, m, p)
	done = err == nil
	return err
}

// drain deletes all that waits; nobody uses the volume.
func (v *Volume) drain(ctx context.Context, ch kvstore.Channel) error {
	m := v.m.Load()
	for m != nil && anyWord(m.queued) {
		err := v.reap(ctx, ch)
		if errors.Is(err, kvstore.ErrFenced) {
			err = v.waitLease(ctx)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctxErr(ctx)
		}
	}
	return nil
}

// reapPage stores page p and deletes the keys that wait in its range.
func (v *Volume) reapPage(ctx context.Context, ch kvstore.Channel, m *presence, p uint64) error {
	if !anyWord(m.pending[p*wordsPerPage : (p+1)*wordsPerPage]) {
		return nil
	}
	page := make([]byte, kvstore.BlockSize)
	seq, err := v.storeForReaping(ctx, ch, m, p, page)
	if err != nil {
		return err
	}
	return v.deletePending(ctx, ch, m, p, seq, page)
}

// storeForReaping stores page p and returns the sequence that it has, its bytes in
// page.
func (v *Volume) storeForReaping(ctx context.Context, ch kvstore.Channel, m *presence, p uint64, page []byte) (seq uint64, err error) {
	if err := v.gate.lock(ctx); err != nil {
		return 0, err
	}
	defer v.gate.unlock()
	stored := false
	defer func() {
		if !stored {
			setBit(m.dirty, p)
		}
	}()
	clearBit(m.dirty, p)
	m.copyPage(page, v.layer, p, v.lease.Load().Generation())
	seq = m.seq[p]
	err = v.storeOne(ctx, ch, pageID{0, p}, page, kvstore.Same)
	stored = err == nil
	return seq, err
}

func anyWord(words []uint64) bool {
	for i := range words {
		if atomic.LoadUint64(&words[i]) != 0 {
			return true
		}
	}
	return false
}

// errStale: the page was stored again meanwhile.
var errStale = errors.New("page was stored again")

// deletePending deletes the blocks of page p that wait for it and whose bits are
// off in the page as it was stored with sequence seq.
func (v *Volume) deletePending(ctx context.Context, ch kvstore.Channel, m *presence, p, seq uint64, page []byte) error {
	d := &deletion{v: v, m: m, page: p, seq: seq, owner: v.set.owner()}
	defer d.release()
	for i := range uint64(wordsPerPage) {
		at := p*wordsPerPage + i
		stored := pageWord(page, int(i))
		for word := atomic.LoadUint64(&m.pending[at]); word != 0; word &= word - 1 {
			n := bits.TrailingZeros64(word)
			lba := at*64 + uint64(n)
			server := v.set.pool.Server(kvstore.Key{Layer: v.layer, Number: lba})
			if len(d.ops) == reapBatch || len(d.ops) > 0 && server != d.server {
				if err := d.send(ctx, ch); err != nil {
					return err
				}
			}
			d.server = server
			d.add(lba, stored>>n&1 != 0)
		}
	}
	err := d.send(ctx, ch)
	if err == nil && d.skipped {
		setBit(m.queued, p)
		return nil
	}
	return err
}

// deletion is a batch of keys to delete, each under its claim.
type deletion struct {
	v         *Volume
	m         *presence
	page, seq uint64
	owner     uint32
	server    int // of all blocks in a batch: one that hangs must not keep the claims of others' blocks
	ops       []kvstore.Op
	held      []int32
	skipped   bool // some blocks were in use
}

// add puts a block into the batch if nobody works on it and its bit is off, also
// in the page that was stored. It does not wait for a claim.
func (d *deletion) add(lba uint64, stored bool) {
	i := claimOf(d.v.layer, lba)
	if !d.v.set.claims.try(i, d.owner) {
		d.skipped = true
		return
	}
	if d.m.present(lba) {
		// Written again. The bit of the deletion goes first: a discard that comes
		// between turns the present bit off before it sets the other one anew.
		if clearBit(d.m.pending, lba) {
			d.m.pend.Add(-1)
		}
		if !d.m.present(lba) {
			d.m.suspect(lba)
		}
		d.v.set.claims.release(i)
		return
	}
	if stored {
		d.skipped = true
		d.v.set.claims.release(i)
		return
	}
	d.held = append(d.held, i)
	d.ops = append(d.ops, kvstore.Op{Code: kvstore.Discard, Key: kvstore.Key{Layer: d.v.layer, Number: lba},
		Count: 1, Seed: d.v.seed, Fence: d.v.fence.Load()})
}

// send deletes the batch. Bits that are off under the claim stay off; if no copy
// of the page was taken since the one that was stored, the stored bits are off.
func (d *deletion) send(ctx context.Context, ch kvstore.Channel) error {
	whole := false
	defer func() {
		if !whole { // see Worker.wreck: first the channel, then the claims
			_ = kvstore.Contain(ch.Close) // the panic under way is what gets told
		}
		d.release()
	}()
	err := d.deleteAll(ctx, ch)
	whole = true
	return err
}

func (d *deletion) deleteAll(ctx context.Context, ch kvstore.Channel) error {
	if len(d.ops) == 0 {
		return nil
	}
	if atomic.LoadUint64(&d.m.seq[d.page]) != d.seq {
		return errStale
	}
	batch := make([]*kvstore.Op, len(d.ops))
	for i := range d.ops {
		batch[i] = &d.ops[i]
	}
	ch.Do(ctx, batch)
	var failed error
	for i := range d.ops {
		if d.ops[i].Err != nil {
			failed = d.ops[i].Err
		} else if clearBit(d.m.pending, d.ops[i].Key.Number) {
			d.m.pend.Add(-1)
		}
	}
	return failed
}

func (d *deletion) release() {
	for _, i := range d.held {
		d.v.set.claims.release(i)
	}
	d.held, d.ops = d.held[:0], d.ops[:0]
}
