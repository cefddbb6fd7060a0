package pool

import (
	"sort"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Limits of the records. They bound what a decoder allocates; each is far above
// any use and keeps its record below kvstore.MaxRecord.
const (
	maxServers  = 1024 // 1024 addresses of 200 bytes and the slots: 230 kB
	maxAddress  = 4096 // a path, for the file store
	maxVolumes  = 8192 // 8192 entries of at most 82 bytes: 672 kB
	maxLayers   = 4096
	maxHostname = 255
	maxTTL      = time.Hour
)

// Slots is the number of slots of every pool; each slot is on one server.
const Slots = 4096

// member is a server as the pool record knows it.
type member struct {
	address  string
	sentinel [16]byte
}

// poolRecord is the record "pool".
type poolRecord struct {
	uuid    [16]byte
	version uint64 // of the slot table; rises when servers or slots change
	created time.Time
	servers []member // sorted by address when the pool is made; the first one is the master
	slots   [Slots]uint16
	tail    []byte // of a newer writer
}

func (r *poolRecord) encode() []byte {
	var e encoder
	e.id(r.uuid)
	e.u64(r.version)
	e.u64(uint64(r.created.UnixNano()))
	e.u16(uint16(len(r.servers)))
	for _, s := range r.servers {
		e.str16(s.address)
		e.id(s.sentinel)
	}
	e.u16(Slots)
	for _, s := range r.slots {
		e.u16(s)
	}
	e.raw(r.tail)
	return e.b
}

func decodePool(h head, body []byte) (*poolRecord, error) {
	d := decoder{b: body}
	r := &poolRecord{uuid: d.id(), version: d.u64(), created: decodeTime(d.u64())}
	n := d.count(int(d.u16()), maxServers, 2+16)
	seen := make(map[string]bool, n)
	for range n {
		m := member{address: d.str16(), sentinel: d.id()}
		if m.address == "" || len(m.address) > maxAddress || seen[m.address] {
			d.failf("its list of servers is wrong")
		}
		seen[m.address] = true
		r.servers = append(r.servers, m)
	}
	if n == 0 {
		d.failf("it names no server")
	}
	if d.u16() != Slots {
		d.failf("it does not have %d slots", Slots)
	}
	for i := range r.slots {
		if r.slots[i] = d.u16(); int(r.slots[i]) >= n {
			d.failf("slot %d names a server that is not listed", i)
		}
	}
	var err error
	r.tail, err = d.end(h)
	return r, err
}

// sentinelValue is the whole record of a sentinel: its nonce is the id, its
// revision 1 and its body empty, so that the value follows from name and id.
func sentinelValue(name string, id [16]byte) []byte {
	return seal(name, head{kind: kindSentinel, nonce: id, revision: 1}, nil)
}

// entry is a volume in the catalogue. Its uuid leads to the volume's record.
type entry struct {
	name  string
	state State
	uuid  [16]byte
}

// catalogue is the record "catalogue": entries sorted by name.
type catalogue struct {
	entries []entry
	tail    []byte
}

func (c *catalogue) encode() []byte {
	var e encoder
	e.u32(uint32(len(c.entries)))
	for _, v := range c.entries {
		e.str8(v.name)
		e.u8(uint8(v.state))
		e.id(v.uuid)
	}
	e.raw(c.tail)
	return e.b
}

func decodeCatalogue(h head, body []byte) (*catalogue, error) {
	d := decoder{b: body}
	c := &catalogue{}
	n := d.count(int(d.u32()), maxVolumes, 1+1+1+16)
	for i := range n {
		v := entry{name: d.str8(), state: State(d.u8()), uuid: d.id()}
		switch {
		case CheckName(v.name) != nil:
			d.failf("entry %d has a bad name", i)
		case i > 0 && c.entries[i-1].name >= v.name:
			d.failf("its names are not in order")
		case v.state < Creating || v.state > Removing:
			d.failf("%s has the unknown state %d", v.name, v.state)
		}
		c.entries = append(c.entries, v)
	}
	var err error
	c.tail, err = d.end(h)
	return c, err
}

// find returns the index of a name, or where it belongs.
func (c *catalogue) find(name string) (int, bool) {
	i := sort.Search(len(c.entries), func(i int) bool { return c.entries[i].name >= name })
	return i, i < len(c.entries) && c.entries[i].name == name
}

func (c *catalogue) lookup(name string) (entry, bool) {
	i, ok := c.find(name)
	if !ok {
		return entry{}, false
	}
	return c.entries[i], true
}

func (c *catalogue) put(v entry) {
	i, ok := c.find(v.name)
	if !ok {
		c.entries = append(c.entries, entry{})
		copy(c.entries[i+1:], c.entries[i:])
	}
	c.entries[i] = v
}

func (c *catalogue) drop(name string) {
	if i, ok := c.find(name); ok {
		c.entries = append(c.entries[:i], c.entries[i+1:]...)
	}
}

// lastHolder is who had the lease last, kept in the volume record as well: the
// generation must not go back, nor a live holder be overlooked, when the record
// of the lease is lost.
type lastHolder struct {
	id  [16]byte
	at  hostID
	ttl time.Duration
}

const (
	flagDamaged    = 1
	flagUnaccepted = 2
)

func encodeVolume(v *Volume) []byte {
	var e encoder
	e.str8(v.Name)
	e.id(v.UUID)
	e.u8(uint8(v.State))
	var flags uint8
	if v.Damaged {
		flags |= flagDamaged
	}
	if v.Unaccepted {
		flags |= flagUnaccepted
	}
	e.u8(flags)
	e.u64(uint64(v.Size))
	e.u8(v.MapHeight)
	e.u64(uint64(v.Created.UnixNano()))
	e.u64(v.Generation)
	e.id(v.last.id)
	e.id(v.last.at.host)
	e.id(v.last.at.boot)
	e.u32(uint32(v.last.ttl / time.Millisecond))
	e.u16(uint16(len(v.Layers)))
	for _, l := range v.Layers {
		e.u32(uint32(l.ID))
		e.id(l.UUID)
	}
	e.raw(v.tail)
	return e.b
}

func decodeVolume(h head, body []byte) (*Volume, error) {
	d := decoder{b: body}
	v := &Volume{Name: d.str8(), UUID: d.id(), State: State(d.u8()),
		Compat: h.compat, ROCompat: h.roCompat, Incompat: h.incompat}
	flags := d.u8()
	v.Damaged, v.Unaccepted = flags&flagDamaged != 0, flags&flagUnaccepted != 0
	v.Size = int64(d.u64())
	v.MapHeight = d.u8()
	v.Created = decodeTime(d.u64())
	v.Generation = d.u64()
	v.last = lastHolder{id: d.id(), at: hostID{host: d.id(), boot: d.id()}, ttl: decodeTTL(&d)}
	n := d.count(int(d.u16()), maxLayers, 4+16)
	for range n {
		v.Layers = append(v.Layers, Layer{ID: kvstore.LayerID(d.u32()), UUID: d.id()})
	}
	switch {
	case d.err != nil:
	case CheckName(v.Name) != nil:
		d.failf("it has a bad name")
	case v.State < Creating || v.State > Removing:
		d.failf("it has the unknown state %d", v.State)
	case flags&^(flagDamaged|flagUnaccepted) != 0:
		d.failf("it has the unknown flags %#x", flags)
	case CheckSize(v.Size) != nil:
		d.failf("its size is wrong")
	case v.MapHeight > maxMapHeight:
		d.failf("its map has %d levels", v.MapHeight)
	case n == 0:
		d.failf("it has no layer")
	}
	var err error
	v.tail, err = d.end(h)
	return v, err
}

// maxMapHeight is the number of kinds that a map has.
const maxMapHeight = uint8(kvstore.KindMapTop-kvstore.KindMap) + 1

// decodeTTL refuses what would keep a volume from everybody for very long.
func decodeTTL(d *decoder) time.Duration {
	ttl := time.Duration(d.u32()) * time.Millisecond
	if ttl > maxTTL {
		d.failf("its time to live of %v is too long", ttl)
	}
	return ttl
}

// encodeTime is what decodeTime reads; the zero time is 0.
func encodeTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

// decodeTime reads nanoseconds since 1970 (UTC).
func decodeTime(ns uint64) time.Time { return time.Unix(0, int64(ns)).UTC() }
