package pool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/kvbfs/kvbfs/kvstore"
)

// find looks for a pool on the servers, checks it and joins the store to it; nil
// if the store is empty and nobody remembers otherwise. p.formatMu is held.
func (p *Pool) find(ctx context.Context) (*table, error) {
	mem, err := p.recall()
	if err != nil {
		return nil, err
	}
	rec, raw, err := p.readPoolRecord(ctx)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		if mem != nil {
			return nil, p.forgotten(false, "pool %s was on %s, but no server has its pool record", mem.UUID, strings.Join(p.servers, ", "))
		}
		return nil, nil
	}
	if mem != nil && mem.UUID != hex.EncodeToString(rec.uuid[:]) {
		return nil, p.forgotten(false, "pool %s was on %s, but pool %x is there now", mem.UUID, strings.Join(p.servers, ", "), rec.uuid)
	}
	numbers, err := p.match(rec)
	if err != nil {
		return nil, err
	}
	t := newTable(rec, numbers, p.sentinelName())
	if err := p.verify(ctx, t, mem); err != nil {
		return nil, err
	}
	if p.opt.Damaged {
		return t, p.join(t, mem)
	}
	h, _, _ := unseal(p.poolName(), kindPool, raw)
	for i := range p.servers {
		if err := p.copyTo(ctx, i, p.poolName(), h, raw); err != nil {
			return nil, err
		}
	}
	return t, p.join(t, mem)
}

// join makes t the pool's table and tells the store. p.formatMu is held.
func (p *Pool) join(t *table, mem *memory) error {
	if !p.opt.Damaged {
		if err := p.remember(mem, t.record); err != nil {
			return err
		}
	}
	p.table.Store(t)
	if err := p.st.Join(p); err != nil {
		p.table.Store(nil)
		return err
	}
	return nil
}

// readPoolRecord returns the newest intact pool record of all servers, nil if
// there is none.
func (p *Pool) readPoolRecord(ctx context.Context) (*poolRecord, []byte, error) {
	var (
		best    *poolRecord
		raw     []byte
		bestRev uint64
		from    int
		corrupt error
	)
	for i := range p.servers {
		s, err := p.get(ctx, i, p.poolName(), kindPool)
		var r *poolRecord
		if err == nil {
			if r, err = decodePool(s.head, s.body); err != nil {
				err = p.opError("read record", i, p.poolName(), err)
			}
		}
		switch {
		case errors.Is(err, kvstore.ErrAbsent):
		case errors.Is(err, kvstore.ErrCorrupt):
			corrupt = err
		case err != nil:
			return nil, nil, err
		case best != nil && best.uuid != r.uuid:
			return nil, nil, fmt.Errorf("%w: %s belongs to pool %x of %s, but %s to pool %x of %s: use the URL of one pool",
				ErrOtherServers, p.servers[from], best.uuid, addresses(best), p.servers[i], r.uuid, addresses(r))
		case best == nil || s.head.revision > bestRev:
			best, raw, bestRev, from = r, s.raw.Value, s.head.revision, i
		}
	}
	if best == nil && corrupt != nil {
		return nil, nil, fmt.Errorf("no server has an intact pool record: %w", corrupt)
	}
	return best, raw, nil
}

func addresses(r *poolRecord) string {
	var list []string
	for _, s := range r.servers {
		list = append(list, s.address)
	}
	return strings.Join(list, ", ")
}

// match finds the store's number of each server in the record, by address. A
// pool of one server may go by another name (localhost, a moved directory): its
// sentinel proves that it is the one.
func (p *Pool) match(r *poolRecord) ([]int, error) {
	if len(r.servers) == 1 && len(p.servers) == 1 {
		return []int{0}, nil
	}
	numbers := make([]int, len(r.servers))
	for i, s := range r.servers {
		numbers[i] = slices.Index(p.servers, s.address)
	}
	if len(p.servers) != len(r.servers) || slices.Contains(numbers, -1) {
		return nil, fmt.Errorf("%w: %s names %s, but pool %x was made with %s: use these addresses, in any order",
			ErrOtherServers, p.opt.URL, strings.Join(p.servers, ", "), r.uuid, addresses(r))
	}
	return numbers, nil
}

// verify compares every server's sentinel with the record and with the memory.
func (p *Pool) verify(ctx context.Context, t *table, mem *memory) error {
	for i := range t.record.servers {
		why, err := p.lostSentinel(ctx, t, i, mem)
		switch {
		case err != nil:
			return err
		case why != "" && p.opt.Damaged:
			p.lost = append(p.lost, t.numbers[i])
		case why != "":
			return p.forgotten(true, "server %s %s", p.servers[t.numbers[i]], why)
		}
	}
	return nil
}

// formatted returns the table, formatting an empty store first. Of two daemons
// that format at once one makes the pool and both use it: sentinels and the pool
// record are created by add, the record on the server whose address sorts first,
// whatever the order of the URL.
func (p *Pool) formatted(ctx context.Context) (*table, error) {
	if t := p.table.Load(); t != nil {
		return t, nil
	}
	p.formatMu.Lock()
	defer p.formatMu.Unlock()
	if t := p.table.Load(); t != nil {
		return t, nil
	}
	t, err := p.find(ctx)
	if err != nil || t != nil {
		return t, err
	}
	rec, err := p.newPool(ctx)
	if err != nil {
		return nil, err
	}
	first := slices.Index(p.servers, rec.servers[0].address)
	if err := p.refuseOrphans(ctx, first); err != nil {
		return nil, err
	}
	h := head{kind: kindPool, nonce: newID(), revision: uint64(rec.created.UnixNano())}
	err = p.ctl.Add(ctx, first, p.poolName(), seal(p.poolName(), h, rec.encode()))
	if err != nil && !errors.Is(err, kvstore.ErrExists) {
		return nil, err
	}
	// Ours or the other's: read it as everybody does.
	t, err = p.find(ctx)
	if err == nil && t == nil {
		err = p.opError("format pool", first, p.poolName(), kvstore.ErrServerLost)
	}
	return t, err
}

// newPool gives every server a sentinel and deals the slots out evenly.
func (p *Pool) newPool(ctx context.Context) (*poolRecord, error) {
	if len(p.servers) > maxServers {
		return nil, fmt.Errorf("%d servers are too many for a pool: at most %d: %w", len(p.servers), maxServers, kvstore.ErrInvalid)
	}
	r := &poolRecord{uuid: newID(), version: 1, created: p.opt.Now()}
	for i, address := range p.servers {
		if address == "" || len(address) > maxAddress || slices.Index(p.servers, address) != i {
			return nil, fmt.Errorf("address %q cannot be a server of a pool, or is named twice: %w", address, kvstore.ErrInvalid)
		}
		id, err := p.placeSentinel(ctx, i)
		if err != nil {
			return nil, err
		}
		r.servers = append(r.servers, member{address, id})
	}
	sort.Slice(r.servers, func(i, j int) bool { return r.servers[i].address < r.servers[j].address })
	for i := range r.slots {
		r.slots[i] = uint16(i % len(r.servers))
	}
	return r, nil
}

// placeSentinel gives a server a random sentinel unless it has one, which an
// interrupted or simultaneous format left.
func (p *Pool) placeSentinel(ctx context.Context, server int) ([16]byte, error) {
	id := newID()
	name := p.sentinelName()
	err := p.ctl.Add(ctx, server, name, sentinelValue(name, id))
	if !errors.Is(err, kvstore.ErrExists) {
		return id, err
	}
	s, err := p.get(ctx, server, name, kindSentinel)
	return s.head.nonce, err
}

// refuseOrphans refuses to make a pool where a catalogue is left: then the pool
// record alone was lost, and a new one would hide the volumes for good.
func (p *Pool) refuseOrphans(ctx context.Context, server int) error {
	_, err := p.ctl.Get(ctx, server, p.catalogueName())
	switch {
	case errors.Is(err, kvstore.ErrAbsent):
		return nil
	case err != nil:
		return err
	}
	if rec, _, err := p.readPoolRecord(ctx); err != nil || rec != nil {
		return err // formatted and used meanwhile by somebody else
	}
	return p.forgotten(true, "server %s has a catalogue of volumes but no pool record", p.servers[server])
}
