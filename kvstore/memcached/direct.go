package memcached

import (
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// The replies to a run of gets are received straight into the callers' blocks.
// That needs to know where each block will begin before it comes, and all but
// always we do: the client flags of a block have ten digits (blockFlags), so the
// line before it has a fixed length.
//
//	VALUE <key> <flags> 4096\r\n <block> \r\n VALUE ... <block> \r\nEND\r\n
//	|---- headLen ----------|            glue of the next piece
//
// What comes is checked against that layout as it comes. At the first byte that
// differs (a key is absent, an item is no block) what was received since is
// copied together into the ordinary buffer, and the ordinary parser goes on: it
// alone decides what such a reply means.

const (
	headLen = len("VALUE ") + keyLen + len(" 4294967295 4096\r\n")
	// maxDirect pieces fit the ordinary buffer, if they must go there after all.
	maxDirect = bufferSize / (headLen + kvstore.BlockSize + 8)
	// pieceSlot holds the glue before a head, and the head.
	pieceSlot = 48
)

var _ = [1]struct{}{}[len("\r\nEND\r\n")+headLen-47] // a slot holds both

// direct is a run of gets at the front of a connection's flight whose replies
// are being received in place.
type direct struct {
	n    int // pieces; 0: no run
	next int // the first that is not complete
	glue int // bytes of its slot before its head
	pos  int // where its head begins in what is received
	got  int // bytes received of the run

	heads   []byte // a slot for each piece, and one for the last glue
	vectors []unix.Iovec
	rest    []unix.Iovec // of vectors: not received into yet
	msg     unix.Msghdr
}

// glue is what ends a piece: of the last key of a get, or of another one.
func (r *request) glue() int {
	if r.more {
		return len("\r\n")
	}
	return len("\r\nEND\r\n")
}

// arm lays a run out, if gets are at the front and nothing else is buffered.
func (c *conn) arm() bool {
	d := &c.direct
	if d.n > 0 {
		return true
	}
	if c.state != ready || c.r < c.w {
		return false
	}
	if d.heads == nil {
		d.heads = make([]byte, (maxDirect+1)*pieceSlot)
		d.vectors = make([]unix.Iovec, 0, 2*maxDirect+1)
	}
	d.vectors = d.vectors[:0]
	glue := 0
	for _, r := range c.flight.Rest() {
		if r.step != stepGet || d.n == maxDirect {
			break
		}
		d.vector(d.heads[d.n*pieceSlot:][:glue+headLen])
		d.vector(r.op.Data)
		glue = r.glue()
		d.n++
	}
	if d.n == 0 {
		return false
	}
	d.vector(d.heads[d.n*pieceSlot:][:glue])
	d.rest = d.vectors
	d.next, d.glue, d.pos, d.got = 0, 0, 0, 0
	return true
}

func (d *direct) vector(b []byte) {
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	d.vectors = append(d.vectors, v)
}

// received takes n bytes off the vectors.
func (d *direct) received(n int) {
	d.got += n
	for n > 0 {
		v := &d.rest[0]
		if n < int(v.Len) {
			b := wire.Bytes(v)[n:]
			v.Base = &b[0]
			v.SetLen(len(b))
			return
		}
		n -= int(v.Len)
		d.rest = d.rest[1:]
	}
}

// place gives the pieces that are complete to their operations.
func (c *conn) place() error {
	d := &c.direct
	for d.next < d.n {
		r := c.flight.Front()
		avail := d.got - d.pos
		head := d.heads[d.next*pieceSlot+d.glue:][:headLen]
		if !r.heads(head[:min(avail, headLen)]) {
			return c.linearize()
		}
		end := r.glue()
		if avail < headLen+kvstore.BlockSize+end {
			return nil
		}
		tail := d.heads[(d.next+1)*pieceSlot:][:end]
		if string(tail) != string(valueEnd[:end]) {
			return c.linearize()
		}
		c.failures = 0
		c.flight.Pop()
		c.ch.complete(r, r.proven(flagsOf(head)))
		d.pos += headLen + kvstore.BlockSize + end
		d.next, d.glue = d.next+1, end
	}
	d.n = 0
	return nil
}

// linearize ends the run: what was received and not placed moves into the
// ordinary buffer.
func (c *conn) linearize() error {
	d := &c.direct
	left := d.got - d.pos
	w, glue := 0, d.glue
	add := func(b []byte) {
		n := copy(c.in[w:], b[:min(left, len(b))])
		w, left = w+n, left-n
	}
	for k, r := range c.flight.Rest() {
		if left == 0 {
			break
		}
		i := d.next + k
		add(d.heads[i*pieceSlot+glue:][:headLen])
		add(r.op.Data)
		add(d.heads[(i+1)*pieceSlot:][:r.glue()])
		glue = r.glue()
	}
	c.r, c.w = 0, w
	d.n = 0
	return c.consume()
}

// heads says whether b begins like the line before the request's block.
func (r *request) heads(b []byte) bool {
	const flags, size = 7 + keyLen, 7 + keyLen + 10
	if len(b) == headLen {
		return string(b[:6]) == "VALUE " && string(b[6:6+keyLen]) == string(r.key[:]) && b[flags-1] == ' ' &&
			digits(b[flags:size]) && string(b[size:]) == " 4096\r\n"
	}
	for i, ch := range b {
		var ok bool
		switch {
		case i < 6:
			ok = ch == "VALUE "[i]
		case i < 6+keyLen:
			ok = ch == r.key[i-6]
		case i < flags:
			ok = ch == ' '
		case i < size:
			ok = ch >= '0' && ch <= '9'
		default:
			ok = ch == " 4096\r\n"[i-size]
		}
		if !ok {
			return false
		}
	}
	return true
}

func digits(b []byte) bool {
	for _, ch := range b {
		if ch < '0' || ch > '9' {
			return false
		}
	}
	return true
}

// flagsOf reads the ten digits; what does not fit 32 bits is no block's.
func flagsOf(head []byte) uint64 {
	var n uint64
	for _, ch := range head[7+keyLen : 7+keyLen+10] {
		n = n*10 + uint64(ch-'0')
	}
	return n
}

// proven looks at the checksum of a block that is in place.
func (r *request) proven(flags uint64) error {
	if flags != uint64(blockFlags(r.op.Seed, r.op.Key, r.op.Data)) {
		return corruptBlock(flags)
	}
	return nil
}
