package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Every record has the same envelope (docs/format.md):
//
//	 0  4  magic "KVBR"
//	 4  2  format version
//	 6  1  kind of record
//	 7  1  zero
//	 8  8  compatible features
//	16  8  read-only compatible features
//	24  8  incompatible features
//	32 16  nonce: random for each write
//	48  8  revision: rises with each write of the record
//	56  4  length n of the body
//	60  n  body
//	60+n 4 CRC32C of the record's name and of everything before
const (
	formatVersion = 1
	headSize      = 60
	crcSize       = 4
)

var magic = [4]byte{'K', 'V', 'B', 'R'}

type recordKind uint8

const (
	kindPool recordKind = iota + 1
	kindSentinel
	kindCatalogue
	kindVolume
	kindLease
	kindConsents
)

func (k recordKind) String() string {
	names := [...]string{"?", "pool", "sentinel", "catalogue", "volume", "lease", "consents"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Features that this version knows, beside those of knownIncompat. Each bit that
// is ever used is named in docs/format.md first.
const (
	knownCompat   uint64 = 0
	knownROCompat uint64 = 0
)

// knownIncompat are the incompatible features that this version knows of a kind
// of record.
func knownIncompat(kind recordKind) uint64 {
	if kind == kindLease {
		return featShared
	}
	return 0
}

// head is what the envelope says beside the body.
type head struct {
	kind                       recordKind
	compat, roCompat, incompat uint64
	nonce                      [16]byte
	revision                   uint64
}

// tail says whether a body may go on after what we know: only a writer that
// knows more features than we do appends to it.
func (h head) tail() bool {
	return h.compat&^knownCompat != 0 || h.roCompat&^knownROCompat != 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal puts a body into its envelope.
func seal(name string, h head, body []byte) []byte {
	b := make([]byte, 0, headSize+len(body)+crcSize)
	b = append(b, magic[:]...)
	b = binary.BigEndian.AppendUint16(b, formatVersion)
	b = append(b, byte(h.kind), 0)
	b = binary.BigEndian.AppendUint64(b, h.compat)
	b = binary.BigEndian.AppendUint64(b, h.roCompat)
	b = binary.BigEndian.AppendUint64(b, h.incompat)
	b = append(b, h.nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, h.revision)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, body...)
	return binary.BigEndian.AppendUint32(b, recordCRC(name, b))
}

// recordCRC covers the name, so that a record under a wrong name does not pass.
func recordCRC(name string, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(name), castagnoli), castagnoli, b)
}

// unseal checks the envelope. The error is kvstore.ErrCorrupt for what is
// damaged and ErrFormat for what only a newer version can read. The body is part
// of value.
func unseal(name string, kind recordKind, value []byte) (head, []byte, error) {
	var h head
	switch {
	case len(value) < headSize+crcSize:
		return h, nil, damaged("%d bytes are too short for a record", len(value))
	case len(value) > kvstore.MaxRecord:
		return h, nil, damaged("%d bytes are too long for a record", len(value))
	case [4]byte(value[:4]) != magic:
		return h, nil, damaged("not a record of kvbfs")
	}
	end := len(value) - crcSize
	if binary.BigEndian.Uint32(value[end:]) != recordCRC(name, value[:end]) {
		return h, nil, damaged("wrong checksum")
	}
	if v := binary.BigEndian.Uint16(value[4:]); v != formatVersion {
		return h, nil, fmt.Errorf("%w: it has version %d and this kvbfs reads version %d: upgrade kvbfs", ErrFormat, v, formatVersion)
	}
	h.kind = recordKind(value[6])
	h.compat = binary.BigEndian.Uint64(value[8:])
	h.roCompat = binary.BigEndian.Uint64(value[16:])
	h.incompat = binary.BigEndian.Uint64(value[24:])
	h.nonce = [16]byte(value[32:48])
	h.revision = binary.BigEndian.Uint64(value[48:])
	if unknown := h.incompat &^ knownIncompat(h.kind); unknown != 0 {
		return h, nil, fmt.Errorf("%w: it uses the incompatible features %#x, which this kvbfs does not know: upgrade kvbfs", ErrFormat, unknown)
	}
	if h.kind != kind {
		return h, nil, damaged("it is a %s record, not a %s record", h.kind, kind)
	}
	if n := binary.BigEndian.Uint32(value[56:]); value[7] != 0 || int64(n) != int64(end-headSize) {
		return h, nil, damaged("its length does not match")
	}
	return h, value[headSize:end], nil
}

func damaged(format string, args ...any) error {
	return &damage{fmt.Sprintf(format, args...)}
}

// damage is kvstore.ErrCorrupt for a record, whose text speaks of blocks.
type damage struct{ what string }

func (d *damage) Error() string        { return "record is corrupt: " + d.what }
func (d *damage) Is(target error) bool { return target == kvstore.ErrCorrupt }

// encoder appends the fields of a body, big-endian.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)      { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16)    { e.b = binary.BigEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32)    { e.b = binary.BigEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64)    { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *encoder) id(v [16]byte)   { e.b = append(e.b, v[:]...) }
func (e *encoder) str8(s string)   { e.u8(uint8(len(s))); e.b = append(e.b, s...) }
func (e *encoder) str16(s string)  { e.u16(uint16(len(s))); e.b = append(e.b, s...) }
func (e *encoder) raw(tail []byte) { e.b = append(e.b, tail...) }

// decoder takes fields from a body. After the first failure all fields are zero
// and err stays set, so callers look once, at the end; nothing is allocated by a
// length that the body does not have.
type decoder struct {
	b   []byte
	err error
}

var errShort = errors.New("its body is too short")

func (d *decoder) take(n int) []byte {
	if d.err != nil || len(d.b) < n {
		d.fail(errShort)
		return make([]byte, min(n, 16))
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) failf(format string, args ...any) { d.fail(fmt.Errorf(format, args...)) }

func (d *decoder) u8() uint8    { return d.take(1)[0] }
func (d *decoder) u16() uint16  { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32  { return binary.BigEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64  { return binary.BigEndian.Uint64(d.take(8)) }
func (d *decoder) id() [16]byte { return [16]byte(d.take(16)) }

func (d *decoder) text(n int) string {
	if v := d.take(n); d.err == nil {
		return string(v)
	}
	return ""
}

func (d *decoder) str8() string  { return d.text(int(d.u8())) }
func (d *decoder) str16() string { return d.text(int(d.u16())) }

// count reads a number of items and refuses it when the body cannot hold them.
func (d *decoder) count(n, limit, itemSize int) int {
	if d.err == nil && (n > limit || n*itemSize > len(d.b)) {
		d.failf("it lists %d items, more than it can hold", n)
	}
	if d.err != nil {
		return 0
	}
	return n
}

// end returns what is left, which only newer writers leave (head.tail), and the
// verdict on the whole body.
func (d *decoder) end(h head) ([]byte, error) {
	if d.err == nil && len(d.b) > 0 && !h.tail() {
		d.failf("%d bytes follow its body", len(d.b))
	}
	if d.err != nil {
		return nil, damaged("%v", d.err)
	}
	if len(d.b) == 0 {
		return nil, nil
	}
	return append([]byte(nil), d.b...), nil
}
