package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A scrub reads every block that the map says exists, and asks for every key that
// it says does not, in the ranges that have a page. It runs beside live writers:
// what a plain read makes suspicious is looked at again under the block's claim,
// with the bit as it is then, before it is called lost or a leak. A leak is given
// to the reaper's rules: its key goes when the page with its bit off was stored.
//
// The map of an open volume is in memory, so a page that the store has lost or
// holds in an old version is stored again; nothing is lost by that.
//
// A key that is absent costs the server a look-up and the network some 40 bytes,
// a tenth of a block's read; so the price of finding leaks on stores that cannot
// list keys is proportional to the ranges in use, not to the volume's size.

// ScrubOptions of Set.Scrub.
type ScrubOptions struct {
	Rate    int64 // bytes per second that are read at most; 0: no limit
	Restart bool  // from the beginning, though an earlier scrub was interrupted
	// Progress, if not nil, is called by the calling goroutine after each batch.
	Progress func(Scrub)
}

// Scrub is the account of a scrub, from where it first began.
type Scrub struct {
	Volume   string    `json:"volume"`
	UUID     string    `json:"uuid"` // of the volume
	Begun    time.Time `json:"begun"`
	Resumed  uint64    `json:"resumed_at_block"` // where this run began; 0: at the beginning
	Next     uint64    `json:"next_block"`       // where to go on
	Blocks   uint64    `json:"blocks"`           // size of the volume
	Complete bool      `json:"complete"`

	Checked uint64 `json:"checked_blocks"` // that exist
	Asked   uint64 `json:"asked_keys"`     // of blocks that do not
	Damage

	Leaked      uint64 `json:"leaked_blocks"` // keys that nobody needed
	Freed       uint64 `json:"freed_blocks"`  // of them
	LeakedPages uint64 `json:"leaked_map_pages"`
	HealedPages uint64 `json:"healed_map_pages"` // of Damage.Pages: stored again from memory
}

// Lossless says that nothing was found that cannot be read.
func (s *Scrub) Lossless() bool { return s.Damage.Blocks() == 0 && s.Pages == s.HealedPages }

// Costs in bytes, for the rate.
const (
	blockCost  = kvstore.BlockSize
	absentCost = kvstore.BlockSize / 10
)

// Scrub checks a volume, open or not; if it is not open here it is opened for
// writing meanwhile, as its leaks are freed: pool.ErrHeld if it is held elsewhere.
// An error, also that of ctx, leaves a state from which the next Scrub goes on.
func (s *Set) Scrub(ctx context.Context, name string, opt ScrubOptions) (out Scrub, err error) {
	v, err := s.Open(ctx, name, true)
	if err != nil {
		return out, fmt.Errorf("scrub: %w", err)
	}
	defer func() {
		// If everything was closed meanwhile (an unmount) that was the last close.
		if closed := v.Close(context.WithoutCancel(ctx)); !errors.Is(closed, kvstore.ErrClosed) {
			err = errors.Join(err, closed)
		}
	}()
	ctx, done := v.patient(ctx) // an abort of the volume ends it
	defer done()
	if !v.scrubbing.CompareAndSwap(false, true) {
		return out, fmt.Errorf("%w: volume %s is being scrubbed already", ErrInUse, name)
	}
	defer v.scrubbing.Store(false)
	j := &scrubJob{v: v, opt: opt, owner: s.owner(), pace: pace{rate: opt.Rate}, path: s.scrubPath(v.uuid)}
	j.begin()
	err = s.withChannel(ctx, func(ch kvstore.Channel) error {
		j.ch = ch
		return j.run(ctx)
	})
	if err == nil {
		j.sum.Complete, j.sum.Next = true, j.sum.Blocks
		j.forget()
	} else {
		j.save()
		err = fmt.Errorf("scrub of volume %s stopped at block %d of %d: %w", name, j.sum.Next, j.sum.Blocks, err)
	}
	return j.sum, err
}

// scrubJob is a scrub while it runs.
type scrubJob struct {
	v     *Volume
	ch    kvstore.Channel
	opt   ScrubOptions
	owner uint32 // of claims
	pace  pace
	path  string // of the state; empty: none is kept
	saved time.Time
	sum   Scrub

	reads  scanReads
	was    []bool   // per read: the bit when it was sent
	leaked []uint64 // of the page in work, to be freed
}

// scrubPath is where the state of a volume's scrub is kept.
func (s *Set) scrubPath(uuid [16]byte) string {
	if s.opt.StateDir == "" {
		return ""
	}
	return filepath.Join(s.opt.StateDir, "scrub", fmt.Sprintf("%x.json", uuid))
}

// begin reads where an earlier scrub stopped. What cannot be read is no state:
// then the scrub begins anew, which is never wrong.
func (j *scrubJob) begin() {
	uuid := fmt.Sprintf("%x", j.v.uuid)
	if text, err := os.ReadFile(j.path); err == nil && !j.opt.Restart {
		if json.Unmarshal(text, &j.sum) != nil || j.sum.UUID != uuid {
			j.sum = Scrub{}
		}
	}
	j.sum.Volume, j.sum.UUID, j.sum.Blocks, j.sum.Resumed = j.v.name, uuid, j.v.blocks.Load(), j.sum.Next
	if j.sum.Begun.IsZero() {
		j.sum.Begun = time.Now().UTC().Round(time.Second)
	}
	j.sum.Damage.init()
	j.saved = time.Now()
}

// saveEvery is how much work an interruption may cost.
const saveEvery = time.Second

// save keeps the state. A failure costs time when the scrub is resumed, no more.
func (j *scrubJob) save() {
	j.saved = time.Now()
	if j.path == "" {
		return
	}
	text, err := json.Marshal(&j.sum)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(j.path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(j.path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		j.v.set.logf("volume %s: where its scrub is cannot be kept: %v", j.v.name, err)
	}
}

func (j *scrubJob) forget() {
	if j.path != "" {
		_ = os.Remove(j.path)
	}
}

// told ends a batch that read up to next.
func (j *scrubJob) told(ctx context.Context, next uint64, cost int64) error {
	j.sum.Blocks = j.v.blocks.Load() // it may have grown
	j.sum.Next = min(max(j.sum.Next, next), j.sum.Blocks)
	if time.Since(j.saved) >= saveEvery {
		j.save()
	}
	if j.opt.Progress != nil {
		j.opt.Progress(j.sum)
	}
	return j.pace.pay(ctx, cost)
}

func (j *scrubJob) run(ctx context.Context) error {
	if j.v.set.prop.Presence {
		return j.runExtents(ctx)
	}
	if err := j.checkPages(ctx); err != nil {
		return err
	}
	for p := j.sum.Next / bitsPerPage; p < pagesOf(j.v.blocks.Load()); p++ {
		exists, err := j.inside(func(m *presence) bool { return m.hasPage(p) })
		if err != nil {
			return err
		}
		end := (p + 1) * bitsPerPage
		// Also what is beyond the end of the volume in the last page: a shrinking
		// that was interrupted leaves keys there.
		for first := max(j.sum.Next, p*bitsPerPage); exists && first < end; {
			n := min(j.pace.batch(blockCost), end-first)
			cost, err := j.batch(ctx, first, n)
			if err != nil {
				return err
			}
			first += n
			if first == end {
				if err := j.free(ctx, p); err != nil {
					return err
				}
			}
			if err := j.told(ctx, first, cost); err != nil {
				return err
			}
		}
		j.sum.Next = min(end, j.v.blocks.Load())
	}
	return nil
}

// inside asks the map of the volume, which is closed with it.
func (j *scrubJob) inside(f func(m *presence) bool) (bool, error) {
	if !j.v.use.enter() {
		return false, kvstore.ErrClosed
	}
	defer j.v.use.leave()
	return f(j.v.m.Load()), nil
}

// batch reads n blocks of one page.
func (j *scrubJob) batch(ctx context.Context, first, n uint64) (cost int64, err error) {
	v := j.v
	if !v.use.enter() {
		return 0, kvstore.ErrClosed
	}
	defer v.use.leave()
	m := v.m.Load()
	j.reads.reset()
	j.was = j.was[:0]
	for lba := first; lba < first+n; lba++ {
		on := m.present(lba)
		j.was = append(j.was, on)
		j.reads.read(v, lba)
		if on {
			j.sum.Checked++
			cost += blockCost
		} else {
			j.sum.Asked++
			cost += absentCost
		}
	}
	j.ch.Do(ctx, j.reads.batch)
	for i := range j.reads.ops {
		op, lba := &j.reads.ops[i], first+uint64(i)
		bad := errors.Is(op.Err, kvstore.ErrAbsent) || errors.Is(op.Err, kvstore.ErrCorrupt)
		switch {
		case errors.Is(op.Err, kvstore.ErrServerLost):
			v.serverLost(op.Err)
			if j.was[i] {
				v.report(ctx, lba, Lost, op.Err.Error())
				j.sum.add(lba, Lost.String(), v.set.store.Locate(op.Key).Server)
			}
		case op.Err != nil && !bad:
			return cost, op.Err
		case j.was[i] && bad:
			err = j.verify(ctx, m, op)
		case !j.was[i] && !errors.Is(op.Err, kvstore.ErrAbsent):
			err = j.leak(ctx, m, op)
		}
		if err != nil {
			return cost, err
		}
	}
	return cost, nil
}

// claimed calls f with the claim of a block.
func (j *scrubJob) claimed(ctx context.Context, lba uint64, f func() error) error {
	c := j.v.set.claims
	i := claimOf(j.v.layer, lba)
	for !c.try(i, j.owner) {
		if err := c.wait(ctx, i); err != nil {
			return err
		}
	}
	defer c.release(i)
	return f()
}

// verify looks again at a block that could not be read.
func (j *scrubJob) verify(ctx context.Context, m *presence, op *kvstore.Op) error {
	v, lba := j.v, op.Key.Number
	return j.claimed(ctx, lba, func() error {
		if m != nil && !m.present(lba) {
			return nil // discarded meanwhile
		}
		j.ch.Do(ctx, []*kvstore.Op{op})
		class := Lost
		switch err := op.Err; {
		case err == nil:
			return nil
		case errors.Is(err, kvstore.ErrAbsent), errors.Is(err, kvstore.ErrServerLost):
			_ = v.reportLost(ctx, lba)
		case errors.Is(err, kvstore.ErrCorrupt):
			class = v.reportAs(ctx, lba, err, op.Data)
		default:
			return err
		}
		j.sum.add(lba, class.String(), v.set.store.Locate(op.Key).Server)
		return nil
	})
}

// leak looks again at a key whose block should not exist, and has it deleted.
func (j *scrubJob) leak(ctx context.Context, m *presence, op *kvstore.Op) error {
	lba := op.Key.Number
	return j.claimed(ctx, lba, func() error {
		if m.present(lba) || m.isPending(lba) {
			return nil // written meanwhile, or its deletion is to come
		}
		j.ch.Do(ctx, []*kvstore.Op{op})
		switch err := op.Err; {
		case errors.Is(err, kvstore.ErrAbsent), errors.Is(err, kvstore.ErrServerLost):
			return nil
		case err != nil && !errors.Is(err, kvstore.ErrCorrupt):
			return err
		}
		m.suspect(lba)
		j.sum.Leaked++
		j.leaked = append(j.leaked, lba)
		return nil
	})
}
