package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// pageBatch is how many presence pages are read or stored at once.
const pageBatch = 64

// pageStore is one page on its way into the store.
type pageStore struct {
	id   pageID
	data []byte
	op   kvstore.Op
	got  []byte // what a read found
	next pageStep
	err  error
}

type pageStep uint8

const (
	pageRead  pageStep = iota // learn the version that is stored
	pageWrite                 // store data, as op.Expect says
	pageDone
)

// storePages stores pages, each replacing exactly the version that was read
// before: neither a delayed command of ours nor a holder that lost its lease
// brings an old page back. Every page gets its result in err.
//
// The caller holds v.gate, so there is one store of a page at a time.
func (v *Volume) storePages(ctx context.Context, ch kvstore.Channel, pages []pageStore) {
	for len(pages) > 0 {
		n := min(len(pages), pageBatch)
		v.storeBatch(ctx, ch, pages[:n])
		pages = pages[n:]
	}
}

func (v *Volume) storeBatch(ctx context.Context, ch kvstore.Channel, pages []pageStore) {
	// A page moves on with each round unless somebody else changes it too.
	const maxRounds = 32
	for round := 0; ; round++ {
		v.pageRound(ctx, ch, pages, pageRead)
		if v.pageRound(ctx, ch, pages, pageWrite) {
			return
		}
		fenced := false
		for i := range pages {
			p := &pages[i]
			fenced = fenced || errors.Is(p.op.Err, kvstore.ErrFenced)
			if round == maxRounds && p.next != pageDone {
				p.next, p.err = pageDone, kvstore.ErrConflict
			}
		}
		if !fenced {
			continue
		}
		if err := v.waitLease(ctx); err != nil {
			for i := range pages {
				if pages[i].next != pageDone {
					pages[i].next, pages[i].err = pageDone, err
				}
			}
		}
	}
}

// pageRound executes one step of all pages that are at it, and says whether all
// pages are done.
func (v *Volume) pageRound(ctx context.Context, ch kvstore.Channel, pages []pageStore, step pageStep) bool {
	ops := v.pageOps[:0]
	for i := range pages {
		if p := &pages[i]; p.next == step {
			v.preparePage(p)
			ops = append(ops, &p.op)
		}
	}
	if len(ops) > 0 {
		ch.Do(ctx, ops)
	}
	done := true
	for i := range pages {
		p := &pages[i]
		if p.next == step {
			if step == pageRead {
				v.pageWasRead(p)
			} else {
				v.pageWasWritten(p)
			}
		}
		done = done && p.next == pageDone
	}
	return done
}

func (v *Volume) preparePage(p *pageStore) {
	expect, version := p.op.Expect, p.op.Version
	p.op = kvstore.Op{Key: p.id.key(v.layer), Seed: v.seed}
	if p.next == pageRead {
		if p.got == nil {
			p.got = make([]byte, kvstore.BlockSize)
		}
		p.op.Code, p.op.Versioned, p.op.Data = kvstore.Read, true, p.got
		return
	}
	p.op.Code, p.op.Expect, p.op.Version = kvstore.Write, v.set.expect(expect), version
	p.op.Data, p.op.Fence = p.data, v.fence.Load()
}

func (v *Volume) pageWasRead(p *pageStore) {
	switch err := p.op.Err; {
	case err == nil:
		if bytes.Equal(p.got, p.data) {
			p.next = pageDone // an earlier try was executed after all
			return
		}
		mine, _ := parsePage(p.data, v.layer, p.id)
		theirs, bad := parsePage(p.got, v.layer, p.id)
		if bad == nil && theirs.generation > mine.generation {
			p.next = pageDone
			p.err = fmt.Errorf("%w: %s has generation %d, ours is %d", pool.ErrHeld,
				p.id.key(v.layer), theirs.generation, mine.generation)
			return
		}
		p.next, p.op.Expect = pageWrite, kvstore.Same
	case errors.Is(err, kvstore.ErrAbsent):
		p.next, p.op.Expect = pageWrite, kvstore.Absent
	case errors.Is(err, kvstore.ErrCorrupt):
		p.next, p.op.Expect = pageWrite, kvstore.Present
	default:
		p.next, p.err = pageDone, err
	}
}

func (v *Volume) pageWasWritten(p *pageStore) {
	switch err := p.op.Err; {
	case err == nil:
		p.next = pageDone
	case errors.Is(err, kvstore.ErrExists), errors.Is(err, kvstore.ErrConflict),
		errors.Is(err, kvstore.ErrAbsent), errors.Is(err, kvstore.ErrFenced):
		p.next = pageRead
	default:
		p.next, p.err = pageDone, err
	}
}

// ensurePage makes level 0 page p exist: it and every parent that is missing are
// stored, children first, before the first block of its range is written. So a
// full store shows at a write, never at a flush.
func (v *Volume) ensurePage(ctx context.Context, ch kvstore.Channel, m *presence, p uint64) error {
	if err := v.gate.lock(ctx); err != nil {
		return err
	}
	defer v.gate.unlock()
	if m.hasPage(p) {
		return nil
	}
	if err := v.state.back(p); err != nil {
		return fmt.Errorf("%w: %w", kvstore.ErrFull, err)
	}
	generation := v.lease.Load().Generation()
	child := pageID{0, p}
	data := make([]byte, kvstore.BlockSize)
	putPage(data, v.layer, child, pageVersion{generation, v.nextSeq(m, child)}, nil)
	if err := v.storeOne(ctx, ch, child, data, kvstore.Absent); err != nil {
		return err
	}
	for {
		parent := child.parent()
		known := testBit(m.bits[parent.level+1], parent.n)
		if err := v.storeParent(ctx, ch, m, child, known); err != nil {
			return err
		}
		if known {
			break
		}
		child = parent
	}
	// Parents first: a page counts as existing from the moment its own bit is on.
	for ; child.level > 0; child = (pageID{child.level - 1, p / pow(child.level-1)}) {
		setBit(m.bits[child.level+1], child.n)
	}
	setBit(m.bits[1], p)
	return nil
}

// pow returns how many level 0 pages a page of a level spans.
func pow(level uint8) uint64 {
	n := uint64(1)
	for ; level > 0; level-- {
		n *= bitsPerPage
	}
	return n
}

// storeParent stores the parent of a page with the page's bit on. The bit in
// memory follows when all parents are stored.
func (v *Volume) storeParent(ctx context.Context, ch kvstore.Channel, m *presence, child pageID, known bool) error {
	parent := child.parent()
	words := m.bits[parent.level][parent.n*wordsPerPage : (parent.n+1)*wordsPerPage]
	data := make([]byte, kvstore.BlockSize)
	ver := pageVersion{v.lease.Load().Generation(), v.nextSeq(m, parent)}
	putPage(data, v.layer, parent, ver, words)
	setPageBit(data, child.n%bitsPerPage)
	expect := kvstore.Absent
	if known {
		expect = kvstore.Same
	}
	return v.storeOne(ctx, ch, parent, data, expect)
}

// nextSeq returns the next sequence of a page. Only level 0 pages keep their
// own; the pages above share one counter. The caller holds v.gate.
func (v *Volume) nextSeq(m *presence, id pageID) uint64 {
	if id.level == 0 {
		return atomic.AddUint64(&m.seq[id.n], 1)
	}
	v.treeSeq++
	return v.treeSeq
}

// storeOne stores one page: expect Absent for one that should be new, else Same.
func (v *Volume) storeOne(ctx context.Context, ch kvstore.Channel, id pageID, data []byte, expect kvstore.Expect) error {
	one := []pageStore{{id: id, data: data}}
	if expect == kvstore.Absent {
		one[0].next, one[0].op.Expect = pageWrite, kvstore.Absent
	}
	v.storePages(ctx, ch, one)
	return one[0].err
}

// growTree stores the pages that a map of a greater height begins with. The
// record that names the new height follows. The caller holds v.gate.
func (v *Volume) growTree(ctx context.Context, ch kvstore.Channel, m *presence, from, to uint8) error {
	for l := from; l < to; l++ {
		setBit(m.bits[l], 0) // the old top page exists
		child := pageID{l - 1, 0}
		if err := v.storeParent(ctx, ch, m, child, false); err != nil {
			return err
		}
		setBit(m.bits[l+1], 0)
	}
	return nil
}
