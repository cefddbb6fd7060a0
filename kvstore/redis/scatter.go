package redis

import (
	"golang.org/x/sys/unix"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// The good reply to the GET of a block has one form: 7 bytes, the data, 14 bytes.
// So while replies to GETs are awaited, one readv places the data of many straight
// into the callers' buffers, on the guess that all of them are good. Where the
// guess fails, or the last one is not complete yet, the bytes go back into the
// receive buffer, as if they had come there.

// maxScattered is how many replies are guessed at once: 32 of them and a rest fit
// the receive buffer.
const maxScattered = 32

// endSize is what follows the data of a block.
const endSize = trailer + 2

// scatter is the plan of one receive.
type scatter struct {
	iov   []unix.Iovec
	lead  int // bytes that complete the reply in the receive buffer
	count int // replies
	// small holds the head of reply i at i*(7+14), and its end behind that.
	small [maxScattered * (len(blockHead) + endSize)]byte
}

func (s *scatter) head(i int) []byte {
	at := i * (len(blockHead) + endSize)
	return s.small[at : at+len(blockHead)]
}

func (s *scatter) end(i int) []byte {
	at := i*(len(blockHead)+endSize) + len(blockHead)
	return s.small[at : at+endSize]
}

// plan lays out the vectors of the next receive; false: the receive buffer alone
// takes it.
func (c *conn) plan() bool {
	s := &c.scatter
	s.iov, s.lead, s.count = s.iov[:0], 0, 0
	flight := c.flight.Rest()
	if len(flight) == 0 {
		return false
	}
	if have := c.w - c.r; have > 0 {
		if !flight[0].scatters() || have < len(blockHead) || string(c.in[c.r:c.r+len(blockHead)]) != blockHead {
			return false
		}
		s.lead = blockReply - have
		if s.lead <= 0 || c.w+s.lead > len(c.in) {
			return false
		}
		s.iov = wire.Vector(s.iov, c.in[c.w:c.w+s.lead])
		flight = flight[1:]
	}
	for _, r := range flight {
		if !r.scatters() || s.count == maxScattered {
			break
		}
		if s.count == 0 {
			s.iov = wire.Vector(s.iov, s.head(0))
		} else {
			// The end of one reply and the head of the next are neighbours.
			at := s.count * (len(blockHead) + endSize)
			s.iov = wire.Vector(s.iov, s.small[at-endSize:at+len(blockHead)])
		}
		s.iov = wire.Vector(s.iov, r.op.Data)
		s.count++
	}
	if s.count == 0 {
		return false
	}
	s.iov = wire.Vector(s.iov, s.end(s.count-1))
	return true
}

// gather takes n bytes that came as planned.
func (c *conn) gather(n int) error {
	s := &c.scatter
	lead := min(n, s.lead)
	c.w += lead
	n -= lead
	if lead > 0 {
		if err := c.consume(); err != nil || n == 0 {
			return err
		}
		if c.r < c.w {
			return errMalformed
		}
	}
	c.r, c.w = 0, 0
	i := 0
	for ; n >= blockReply; i++ {
		end := s.end(i)
		if string(s.head(i)) != blockHead || end[trailer] != '\r' || end[trailer+1] != '\n' {
			break
		}
		r := c.flight.Pop()
		c.failures, c.restSince = 0, time.Time{}
		c.node.outage.Healthy()
		c.ch.complete(r, r.take(end))
		n -= blockReply
	}
	if n == 0 {
		return nil
	}
	for _, r := range c.flight.Rest()[:s.count-i] {
		for _, piece := range [3][]byte{s.head(i), r.op.Data[:kvstore.BlockSize], s.end(i)} {
			k := copy(c.in[c.w:], piece[:min(n, len(piece))])
			c.w += k
			n -= k
		}
		i++
	}
	return c.consume()
}
