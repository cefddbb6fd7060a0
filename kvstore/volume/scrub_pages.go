package volume

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// freeTries: others may take copies of the page, or hold claims, meanwhile.
const freeTries = 3

// free deletes the leaks that were found in page p. What cannot be deleted now is
// left to the reaper.
func (j *scrubJob) free(ctx context.Context, p uint64) error {
	v := j.v
	if len(j.leaked) == 0 {
		return nil
	}
	if !v.use.enter() {
		return kvstore.ErrClosed
	}
	defer v.use.leave()
	m := v.m.Load()
	for range freeTries {
		err := v.reapPage(ctx, j.ch, m, p)
		left := j.leaked[:0]
		for _, lba := range j.leaked {
			if m.isPending(lba) {
				left = append(left, lba)
			} else {
				j.sum.Freed++
			}
		}
		j.leaked = left
		if len(left) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, errStale) {
			v.set.logf("volume %s: deletion of leaked blocks is put off: %v", v.name, err)
			break
		}
	}
	j.leaked = j.leaked[:0]
	setBit(m.queued, p)
	v.reaper.kick(v)
	return nil
}

// checkPages looks whether the store has every page of the map as it was stored
// last, stores again what it has not, and frees pages that nothing leads to.
func (j *scrubJob) checkPages(ctx context.Context) error {
	v := j.v
	// A run that is resumed looks at all of them again.
	j.sum.Pages, j.sum.HealedPages, j.sum.LeakedPages = 0, 0, 0
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	height := v.height
	v.gate.unlock()
	for level := int(height) - 1; level >= 0; level-- {
		limit := bitsAt(v.blocks.Load(), level+1) // pages of this level
		for n := uint64(0); n < limit; n += pageBatch {
			if err := j.pageBatch(ctx, uint8(level), n, min(n+pageBatch, limit)); err != nil {
				return err
			}
		}
	}
	return nil
}

// pageBatch looks at the pages from first to end of a level whose parents exist.
func (j *scrubJob) pageBatch(ctx context.Context, level uint8, first, end uint64) error {
	v := j.v
	if !v.use.enter() {
		return kvstore.ErrClosed
	}
	defer v.use.leave()
	m := v.m.Load()
	j.reads.reset()
	cost := int64(0)
	for n := first; n < end; n++ {
		id := pageID{level, n}
		on := testBit(m.bits[level+1], n)
		if parent := id.parent(); !on && (parent.level >= maxLevels || !testBit(m.bits[parent.level+1], parent.n)) {
			continue // nothing of this range was ever stored
		}
		j.reads.read(v, n)
		j.reads.ops[len(j.reads.ops)-1].Key = id.key(v.layer)
		cost += blockCost
	}
	if len(j.reads.ops) == 0 {
		return nil
	}
	j.ch.Do(ctx, j.reads.batch)
	for i := range j.reads.ops {
		op := &j.reads.ops[i]
		id := pageID{level, op.Key.Number}
		on, there := testBit(m.bits[level+1], id.n), op.Err == nil
		switch {
		case op.Err != nil && !lostError(op.Err):
			return op.Err
		case on == there && !(on && j.stalePage(m, id, op.Data)), !on && errors.Is(op.Err, kvstore.ErrServerLost):
			continue
		}
		if err := j.mendPage(ctx, m, id, op); err != nil {
			return err
		}
	}
	return j.pace.pay(ctx, cost)
}

// lostError says whether a read failed because what was asked for is not there.
func lostError(err error) bool {
	return errors.Is(err, kvstore.ErrAbsent) || errors.Is(err, kvstore.ErrCorrupt) || errors.Is(err, kvstore.ErrServerLost)
}

// stalePage says whether a page is not the one that was stored last.
func (j *scrubJob) stalePage(m *presence, id pageID, data []byte) bool {
	ver, err := parsePage(data, j.v.layer, id)
	return err != nil || id.level == 0 && !testBit(m.dirty, id.n) && ver.sequence != atomic.LoadUint64(&m.seq[id.n])
}

// mendPage looks again at a page while nobody stores pages, stores it if it
// should be there, and deletes it if not.
func (j *scrubJob) mendPage(ctx context.Context, m *presence, id pageID, op *kvstore.Op) error {
	v := j.v
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	j.ch.Do(ctx, []*kvstore.Op{op})
	if op.Err != nil && !lostError(op.Err) {
		return op.Err
	}
	server := v.set.store.Locate(op.Key).Server
	if !testBit(m.bits[id.level+1], id.n) {
		if errors.Is(op.Err, kvstore.ErrAbsent) || errors.Is(op.Err, kvstore.ErrServerLost) {
			return nil
		}
		gone := kvstore.Op{Code: kvstore.Discard, Key: op.Key, Count: 1, Seed: v.seed, Fence: v.fence.Load()}
		j.ch.Do(ctx, []*kvstore.Op{&gone})
		if gone.Err == nil {
			j.sum.LeakedPages++
		}
		return gone.Err
	}
	if op.Err == nil && !j.stalePage(m, id, op.Data) {
		return nil
	}
	j.sum.Pages++
	var err error
	if id.level == 0 {
		setBit(m.dirty, id.n)
		err = v.storeDirty(ctx, j.ch, m)
	} else {
		data := make([]byte, kvstore.BlockSize)
		ver := pageVersion{v.lease.Load().Generation(), v.nextSeq(m, id)}
		putPage(data, v.layer, id, ver, m.bits[id.level][id.n*wordsPerPage:(id.n+1)*wordsPerPage])
		err = v.storeOne(ctx, j.ch, id, data, kvstore.Same)
	}
	if err != nil {
		v.set.logf("volume %s: %s is lost on server %s and cannot be stored again: %v", v.name, op.Key, server, err)
		return nil // counted, and not as healed
	}
	j.sum.HealedPages++
	v.set.logf("volume %s: %s was lost or old on server %s; it is stored again from memory", v.name, op.Key, server)
	return nil
}

// runExtents scrubs where the store knows itself what exists: everything is read.
func (j *scrubJob) runExtents(ctx context.Context) error {
	v := j.v
	for {
		begin, err := v.set.store.NextExtent(ctx, v.layer, j.sum.Next, true)
		if errors.Is(err, kvstore.ErrAbsent) || err == nil && begin >= v.blocks.Load() {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := v.set.store.NextExtent(ctx, v.layer, begin, false)
		if err != nil && !errors.Is(err, kvstore.ErrAbsent) {
			return err
		}
		for end = min(max(end, begin+1), v.blocks.Load()); begin < end; {
			n := min(j.pace.batch(blockCost), end-begin)
			if err := j.readExtent(ctx, begin, n); err != nil {
				return err
			}
			begin += n
			if err := j.told(ctx, begin, int64(n)*blockCost); err != nil {
				return err
			}
		}
	}
}

func (j *scrubJob) readExtent(ctx context.Context, first, n uint64) error {
	v := j.v
	if !v.use.enter() {
		return kvstore.ErrClosed
	}
	defer v.use.leave()
	j.reads.reset()
	for lba := first; lba < first+n; lba++ {
		j.reads.read(v, lba)
	}
	j.sum.Checked += n
	j.ch.Do(ctx, j.reads.batch)
	for i := range j.reads.ops {
		op := &j.reads.ops[i]
		switch {
		case op.Err == nil:
		case lostError(op.Err):
			if err := j.verify(ctx, nil, op); err != nil {
				return err
			}
		default:
			return op.Err
		}
	}
	return nil
}
