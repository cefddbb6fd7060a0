package pool

import "time"

// featShared marks a lease that readers share: who does not know it must not take
// the record for a free one.
const featShared uint64 = 1 << 0

// leaseRecord is the record "lease:UUID". It is kept on the master only. It is
// free, or held by one writer, or shared by readers. Then, and while it is free,
// the fields up to hostname are those of the last writer.
type leaseRecord struct {
	held        bool
	volume      [16]byte // uuid
	holder      [16]byte
	at          hostID
	pid         uint32
	generation  uint64
	sequence    uint64 // rises with each renewal
	ttl         time.Duration
	since       time.Time
	poolVersion uint64
	hostname    string
	readers     []reader // nil while held
	tail        []byte
}

// reader is one who shares a lease.
type reader struct {
	id       [16]byte // random per acquisition
	at       hostID
	pid      uint32
	ttl      time.Duration
	beat     uint64 // rises with each renewal
	since    time.Time
	hostname string
}

const (
	// maxReaders keeps the record, which each of them renews, small (22 KiB).
	maxReaders = 64
	// minReader is the size of an entry without a host name.
	minReader = 16 + 16 + 16 + 4 + 4 + 8 + 8 + 1
)

// States of a lease in its record.
const (
	leaseFree   = 0
	leaseHeld   = 1
	leaseShared = 2
)

func (r *leaseRecord) state() uint8 {
	switch {
	case r.held:
		return leaseHeld
	case len(r.readers) > 0:
		return leaseShared
	}
	return leaseFree
}

// incompat are the features that the record needs.
func (r *leaseRecord) incompat() uint64 {
	if r.state() == leaseShared {
		return featShared
	}
	return 0
}

// reader finds an entry by its id; -1 if there is none.
func (r *leaseRecord) reader(id [16]byte) int {
	for i := range r.readers {
		if r.readers[i].id == id {
			return i
		}
	}
	return -1
}

func (r *leaseRecord) encode() []byte {
	var e encoder
	e.u8(r.state())
	e.id(r.volume)
	e.id(r.holder)
	e.id(r.at.host)
	e.id(r.at.boot)
	e.u32(r.pid)
	e.u64(r.generation)
	e.u64(r.sequence)
	e.u32(uint32(r.ttl / time.Millisecond))
	e.u64(encodeTime(r.since))
	e.u64(r.poolVersion)
	e.str8(r.hostname)
	if r.state() == leaseShared {
		e.u16(uint16(len(r.readers)))
		for _, d := range r.readers {
			e.id(d.id)
			e.id(d.at.host)
			e.id(d.at.boot)
			e.u32(d.pid)
			e.u32(uint32(d.ttl / time.Millisecond))
			e.u64(d.beat)
			e.u64(encodeTime(d.since))
			e.str8(d.hostname)
		}
	}
	e.raw(r.tail)
	return e.b
}

func decodeLease(h head, body []byte) (*leaseRecord, error) {
	d := decoder{b: body}
	state := d.u8()
	r := &leaseRecord{held: state == leaseHeld, volume: d.id(), holder: d.id(),
		at: hostID{host: d.id(), boot: d.id()}, pid: d.u32(), generation: d.u64(), sequence: d.u64(),
		ttl: decodeTTL(&d), since: decodeTime(d.u64()), poolVersion: d.u64(), hostname: d.str8()}
	switch {
	case state > leaseShared:
		d.failf("it has the unknown state %d", state)
	case (state == leaseShared) != (h.incompat&featShared != 0):
		d.failf("its state %d does not go with its features", state)
	case state == leaseShared:
		n := d.count(int(d.u16()), maxReaders, minReader)
		for range n {
			r.readers = append(r.readers, reader{id: d.id(), at: hostID{host: d.id(), boot: d.id()}, pid: d.u32(),
				ttl: decodeTTL(&d), beat: d.u64(), since: decodeTime(d.u64()), hostname: d.str8()})
		}
		if n == 0 {
			d.failf("nobody shares it")
		}
	}
	var err error
	r.tail, err = d.end(h)
	return r, err
}
