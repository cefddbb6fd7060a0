package volume

import (
	"context"
	"errors"

	"github.com/kvbfs/kvbfs/kvstore"
)

// slot is one block in work: its operation, and where it stands.
type slot struct {
	op    kvstore.Op
	job   *job
	lba   uint64
	from  int    // bytes of the block that the request covers
	to    int    //
	data  []byte // the request's bytes; nil: zeros (the edge of a discard)
	buf   []byte // a whole block, for partial access
	phase phase
	claim int32 // index, -1: not held
	// known is the present bit as it was when the claim was taken.
	known bool
	again bool // the second try of a read
	vital bool // a write that a full store is asked to take nevertheless
	heals bool // a write of a whole block that was found to be lost
	tries uint8
	// lead is the slot whose extended discard covers this block too.
	lead *slot
	// wait is closed when a discard of this block is over.
	wait      chan struct{}
	excluding bool // registered against discards
}

// phase is what a block needs next.
//
//	read   -> done                        plain read, no claim
//	read   -> verify -> done              absent though present: again, under the claim
//	store  -> done                        whole block: write it
//	drop   -> done                        whole block of zeros, the store keeps presence
//	modify -> store or drop -> done       partial block: read, merge, write
//
// verify, store, drop and modify begin by taking the claim.
type phase uint8

const (
	phaseDone phase = iota
	phaseRead
	phaseVerify
	phaseModify
	phaseStore
	phaseDrop
)

// maxTries bounds how often a write changes its mind about whether the block is
// there: more than two is somebody else writing.
const maxTries = 8

func (s *slot) partial() bool { return s.to-s.from != kvstore.BlockSize }

// admitPart puts one block of a request into work, or answers it at once.
func (w *Worker) admitPart(ctx context.Context, j *job, p part) {
	v, m := j.vol, j.m
	var data []byte
	if j.req.Kind == Read || j.req.Kind == Write {
		data = j.req.Data[p.at : p.at+int64(p.to-p.from)]
	}
	ph := phaseStore
	switch {
	case j.req.Kind == Read:
		if m != nil && !m.present(p.lba) {
			clear(data)
			v.counters.hole.Add(1)
			return
		}
		ph = phaseRead
	case j.req.Kind == Provision:
		if m.present(p.lba) {
			return
		}
		data = zeros[:]
	case data == nil && m != nil && !m.present(p.lba):
		return // zeros over a hole
	case !p.whole():
		ph = phaseModify
		v.counters.partial.Add(1)
	case zero(data) && (m == nil || !v.keepsZeros(m, p.lba)):
		v.counters.zero.Add(1)
		if m != nil {
			m.clear(p.lba, 1)
			v.reaper.kick(v)
			if v.losses.some.Load() {
				v.healed(p.lba, false)
			}
			return
		}
		ph = phaseDrop
	}
	stores := j.req.Kind == Provision || j.req.Kind == Write && !zero(data)
	if m != nil && stores && !m.hasPage(p.lba/bitsPerPage) {
		if err := v.ensurePage(ctx, w.ch, m, p.lba/bitsPerPage); err != nil {
			j.fail(err)
			return
		}
	}
	if m != nil && j.req.Kind == Write && p.whole() {
		v.provisioned.note(p.lba, data)
	}
	n := len(w.free) - 1
	s := w.free[n]
	w.free = w.free[:n]
	*s = slot{job: j, lba: p.lba, from: p.from, to: p.to, data: data, phase: ph, claim: -1}
	if s.partial() {
		s.buf = w.takeScratch()
	}
	j.inUse++
	w.active = append(w.active, s)
}

// done ends a slot with its result.
func (w *Worker) done(s *slot, err error) {
	w.unclaim(s)
	if err != nil {
		s.job.fail(err)
	}
	if s.buf != nil {
		w.scratch = append(w.scratch, s.buf)
		s.buf = nil
	}
	s.job.inUse--
	s.phase = phaseDone
}

func (w *Worker) unclaim(s *slot) {
	if s.excluding {
		s.job.vol.excluded.endModify(s.lba)
		s.excluding = false
	}
	if s.claim >= 0 {
		w.set.claims.release(s.claim)
		s.claim = -1
	}
}

// prepare gives every block in work its next operation, if it can have one now.
// Blocks that need claims come first: a read of a block that this very batch
// writes waits for the next round, because a batch holds one operation per key.
func (w *Worker) prepare(ctx context.Context) {
	w.ops = w.ops[:0]
	var last *slot // a discard that may grow
	writes := false
	for _, s := range w.active {
		if s.phase == phaseRead || s.phase == phaseDone {
			continue
		}
		writes = true
		if s.claim < 0 && !w.claim(ctx, s) {
			continue
		}
		if s.phase == phaseDrop && last != nil && w.set.prop.DiscardExtents && last.job == s.job &&
			last.lba+uint64(last.op.Count) == s.lba {
			last.op.Count++
			s.lead = last
			continue
		}
		w.operate(s)
		w.ops = append(w.ops, &s.op)
		if s.phase == phaseDrop {
			last = s
		}
	}
	for _, s := range w.active {
		if s.phase != phaseRead {
			continue
		}
		if writes && w.set.claims.heldBy(claimOf(s.job.vol.layer, s.lba), w.id) {
			continue
		}
		w.operate(s)
		w.ops = append(w.ops, &s.op)
	}
}

// claim takes the claim of a slot and looks at its bit; false if there is nothing
// to send for the slot now.
func (w *Worker) claim(ctx context.Context, s *slot) bool {
	v := s.job.vol
	i := claimOf(v.layer, s.lba)
	if !w.set.claims.try(i, w.id) {
		return false
	}
	s.claim = i
	if s.job.m == nil {
		if s.partial() && s.phase == phaseModify {
			if s.wait = v.excluded.modify(s.lba); s.wait != nil {
				w.unclaim(s)
				return false
			}
			s.excluding = true
		}
		return true
	}
	s.known = s.job.m.present(s.lba)
	if s.known {
		if s.job.req.Kind == Provision {
			w.done(s, nil) // a write came first
			return false
		}
		if s.phase == phaseStore {
			s.op.Expect = kvstore.Present
		}
		return true
	}
	switch {
	case s.phase == phaseVerify:
		// A discard came between: it was a hole when we looked again.
		w.holeRead(s)
		return false
	case s.phase == phaseModify:
		clear(s.buf)
		return w.merged(s)
	}
	w.expectUnknown(s)
	return true
}

// expectUnknown chooses what a write expects of a block whose bit is off.
func (w *Worker) expectUnknown(s *slot) {
	s.op.Expect = kvstore.Absent
	if s.job.m.isPending(s.lba) {
		s.op.Expect = kvstore.Present
	}
}

// operate fills in the operation of the phase.
func (w *Worker) operate(s *slot) {
	v := s.job.vol
	expect := s.op.Expect
	s.lead = nil
	s.op = kvstore.Op{Key: kvstore.Key{Layer: v.layer, Number: s.lba}, Seed: v.seed, Data: s.data}
	if s.buf != nil {
		s.op.Data = s.buf
	}
	switch s.phase {
	case phaseRead, phaseVerify, phaseModify:
		s.op.Code = kvstore.Read
		if s.phase != phaseVerify && !s.again {
			s.op.Reader = s.job.req.Reader + 1 // else the store itself is asked
		}
	case phaseStore:
		s.op.Code, s.op.Expect, s.op.Fence = kvstore.Write, w.set.expect(expect), v.fence.Load()
		s.op.Vital = s.vital
		// Known under the claim, and nothing has said otherwise: an overwrite. With
		// losses about, who writes is told how it went.
		s.op.Deferrable = s.known && s.tries == 0 && s.op.Expect == kvstore.Present && !v.losses.some.Load() && v.lostFlush.Load() == nil
	case phaseDrop:
		s.op.Code, s.op.Count, s.op.Fence, s.op.Data = kvstore.Discard, 1, v.fence.Load(), nil
	}
}

// merged puts the request's bytes over the block that was read and says whether
// there is something to store.
func (w *Worker) merged(s *slot) bool {
	if s.data == nil {
		clear(s.buf[s.from:s.to])
	} else {
		copy(s.buf[s.from:s.to], s.data)
	}
	m := s.job.m
	if zero(s.buf) && (m == nil || !s.job.vol.keepsZeros(m, s.lba)) {
		s.phase = phaseDrop
		if m != nil {
			m.clear(s.lba, 1)
			s.job.vol.reaper.kick(s.job.vol)
			w.done(s, nil)
			return false
		}
		return true
	}
	s.phase = phaseStore
	if m == nil {
		s.op.Expect = kvstore.Any
	} else if s.known {
		s.op.Expect = kvstore.Present
	} else {
		w.expectUnknown(s)
	}
	return true
}

// holeRead answers a read with zeros.
func (w *Worker) holeRead(s *slot) {
	clear(s.data)
	s.job.vol.counters.hole.Add(1)
	w.done(s, nil)
}

// settle looks at the results of a batch, or of the part of it that has some. It
// returns a volume whose lease has to be waited for.
func (w *Worker) settle(ctx context.Context) (fenced *Volume) {
	for _, s := range w.active {
		if (s.op.Code == 0 && s.lead == nil) || s.phase == phaseDone {
			continue // had no operation in this batch
		}
		err := s.op.Err
		if s.lead != nil {
			err = s.lead.op.Err
		}
		if err == kvstore.ErrPending {
			continue // the channel's Finish gives it one
		}
		switch s.phase {
		case phaseRead, phaseVerify:
			if s.mayBeOvertaken(err) {
				w.unclaim(s)
				s.phase, s.again = phaseRead, false
				fenced = s.job.vol
			} else {
				w.settleRead(ctx, s, err)
			}
		case phaseModify:
			w.settleModify(ctx, s, err)
		case phaseStore, phaseDrop:
			if errors.Is(err, kvstore.ErrFenced) {
				w.restart(s)
				fenced = s.job.vol
			} else {
				w.settleStore(ctx, s, err)
			}
		}
	}
	for _, s := range w.active {
		if s.lead != nil && s.lead.op.Err != kvstore.ErrPending {
			s.lead = nil
		}
	}
	for _, s := range w.active {
		if s.op.Err != kvstore.ErrPending {
			s.op.Code = 0
		}
	}
	w.compact()
	return fenced
}
