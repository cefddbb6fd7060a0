package pool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A server that was emptied has lost its sentinel, and then the pool is refused
// until somebody says that the loss is accepted. That goes in this order, so that
// a crash in between leaves it refused, or each volume:
//
//	every volume is marked as unaccepted -> the server gets a new sentinel ->
//	the pool record names it
//
// From then on the pool opens, and each volume when its own loss was accepted
// (Volume.Unaccepted). Daemons that still run know the old sentinel and go on
// to get kvstore.ErrServerLost from that server.

// Lost returns the numbers of the servers that lost their sentinels, in a Pool
// that was opened with Options.Damaged.
func (p *Pool) Lost() []int { return p.lost }

// AcceptLost takes the lost servers into the pool as new ones. The Pool and its
// store still know the old sentinels: close both and open them anew.
func (p *Pool) AcceptLost(ctx context.Context) error {
	t := p.table.Load()
	if len(p.lost) == 0 || t == nil {
		return nil
	}
	p.looking = false
	list, err := p.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range list {
		if v.State == Removing || v.Layers[0].ID == 0 {
			continue
		}
		if _, err := p.Update(ctx, v.Name, func(v *Volume) error {
			v.Damaged, v.Unaccepted = true, true
			return nil
		}); err != nil && !errors.Is(err, ErrNoVolume) {
			return fmt.Errorf("mark volume %s: %w", v.Name, err)
		}
	}
	rec := *t.record
	rec.servers = slices.Clone(rec.servers)
	for _, number := range p.lost {
		id, err := p.placeSentinel(ctx, number)
		if err != nil {
			return err
		}
		for i := range rec.servers {
			if t.numbers[i] == number {
				rec.servers[i].sentinel = id
			}
		}
	}
	rec.version++
	return p.replacePool(ctx, t, &rec)
}

// replacePool writes the pool record to every server, the master first, and
// remembers it.
func (p *Pool) replacePool(ctx context.Context, t *table, rec *poolRecord) error {
	name := p.poolName()
	_, raw, err := p.readPoolRecord(ctx)
	if err != nil {
		return err
	}
	h, _, err := unseal(name, kindPool, raw)
	if err != nil {
		return err
	}
	h.nonce, h.revision = newID(), max(h.revision+1, uint64(p.opt.Now().UnixNano()))
	value := seal(name, h, rec.encode())
	for _, number := range t.numbers {
		if err := p.copyTo(ctx, number, name, h, value); err != nil {
			return err
		}
	}
	mem, err := p.recall()
	if err != nil {
		return err
	}
	return p.remember(mem, rec)
}

// lostSentinel says why a server is not the one that joined the pool; nil if it
// is. i is its index in the record.
func (p *Pool) lostSentinel(ctx context.Context, t *table, i int, mem *memory) (why string, err error) {
	number, s := t.numbers[i], t.record.servers[i]
	got, err := p.ctl.Get(ctx, number, t.name)
	switch {
	case errors.Is(err, kvstore.ErrAbsent):
		return "lost its sentinel: it was emptied or replaced", nil
	case err != nil:
		return "", err
	case string(got.Value) != string(t.sentinels[number]):
		return "has another sentinel: it was emptied or replaced, or its record is corrupt", nil
	}
	if mem != nil && i < len(mem.Servers) && len(mem.Servers) == len(t.record.servers) &&
		mem.Servers[i].Sentinel != hex.EncodeToString(s.sentinel[:]) && t.record.version <= max(mem.Version, 1) {
		return "has another sentinel than is remembered: it was emptied or replaced", nil
	}
	return "", nil
}

// Consent is a loss that somebody accepted, as it is kept with the volume.
type Consent struct {
	Time    time.Time
	Lost    uint64 // blocks
	Corrupt uint64 // blocks that were damaged, misplaced or foreign
	Unknown uint64 // blocks that may never have been written
	Pages   uint64 // of the presence map
	Host    string
}

// maxConsents bounds the record: the oldest go first.
const maxConsents = 64

func encodeConsents(list []Consent) []byte {
	var e encoder
	e.u16(uint16(len(list)))
	for _, c := range list {
		e.u64(uint64(c.Time.UnixNano()))
		e.u64(c.Lost)
		e.u64(c.Corrupt)
		e.u64(c.Unknown)
		e.u64(c.Pages)
		e.str8(c.Host)
	}
	return e.b
}

func decodeConsents(h head, body []byte) ([]Consent, []byte, error) {
	d := decoder{b: body}
	list := make([]Consent, d.count(int(d.u16()), maxConsents, 5*8+1))
	for i := range list {
		list[i] = Consent{Time: decodeTime(d.u64()), Lost: d.u64(), Corrupt: d.u64(), Unknown: d.u64(), Pages: d.u64(), Host: d.str8()}
	}
	tail, err := d.end(h)
	return list, tail, err
}

// Consents returns the losses of a volume that were accepted, oldest first.
func (p *Pool) Consents(ctx context.Context, uuid [16]byte) ([]Consent, error) {
	t := p.table.Load()
	if t == nil {
		return nil, nil
	}
	s, err := p.load(ctx, t, p.consentsName(uuid), kindConsents)
	if errors.Is(err, kvstore.ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, _, err := decodeConsents(s.head, s.body)
	return list, err
}

// AddConsent records that a loss was accepted.
func (p *Pool) AddConsent(ctx context.Context, uuid [16]byte, c Consent) error {
	t, name := p.table.Load(), p.consentsName(uuid)
	if len(c.Host) > maxHostname {
		c.Host = c.Host[:maxHostname]
	}
	for try := 0; ; try++ {
		s, err := p.load(ctx, t, name, kindConsents)
		if err != nil && !errors.Is(err, kvstore.ErrAbsent) && !errors.Is(err, kvstore.ErrCorrupt) {
			return err
		}
		h := head{kind: kindConsents}
		var list []Consent
		var tail []byte
		if err == nil {
			h = s.head
			if list, tail, err = decodeConsents(s.head, s.body); err != nil {
				return p.opError("read record", t.master, name, err)
			}
			if err := writable(h.roCompat); err != nil {
				return p.opError("write record", t.master, name, err)
			}
		}
		list = append(list, c)
		list = list[max(0, len(list)-maxConsents):]
		if err := p.save(ctx, t, name, s, h, append(encodeConsents(list), tail...)); err == nil || !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}
