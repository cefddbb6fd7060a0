package memcached

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A full memcached under -M refuses even to overwrite: replace and cas take a new
// chunk before they free the old one. So each server holds ballast: items of
// the size of a block that mean nothing. A write that must not fail deletes one,
// writes, and adds it again, in one pipeline. Ballast that could not be added
// again, because another client was faster, is missing until a discard on this
// server makes room.

// ballastItems per server, 1 MiB. ballastKept of them are for overwrites: as many
// at a time find room of their own. The others are given to vital new blocks.
const (
	ballastItems = 256
	ballastKept  = 64
)

// ballastZeros is the value of all ballast.
var ballastZeros [kvstore.BlockSize]byte

// appendBallastKey spells a ballast item's key: 16 bytes, with the colon that no
// block has, and so in the slab class of the blocks. The first of the two digits
// goes beyond '9': up to 'I'.
func appendBallastKey(b []byte, i int) []byte {
	b = append(b, "kvbfs:ballast:"...)
	return append(b, '0'+byte(i/10), '0'+byte(i%10))
}

// appendBallastAdd appends the add command up to its data. Flags as of a block
// (not zero), or the item would be four bytes smaller.
func appendBallastAdd(b []byte, i int) []byte {
	b = append(b, "add "...)
	b = appendBallastKey(b, i)
	return append(b, " 2147483648 0 4096\r\n"...)
}

// ballast is what we know of one server's ballast items.
type ballast struct {
	next    atomic.Uint32 // rotates, so that concurrent writes take different ones
	missing missingItems  // lost to another client, or given to a vital block
	sought  atomic.Bool   // seekBallast asked, or is about to
}

// missingItems is a set of ballast items.
type missingItems [ballastItems / 64]atomic.Uint64

// Load returns how many there are.
func (m *missingItems) Load() (n int) {
	for i := range m {
		n += bits.OnesCount64(m[i].Load())
	}
	return n
}

// pickBallast returns an item that is not known to be missing, and leaves keep.
func (s *server) pickBallast(keep int) (int, bool) {
	missing := &s.ballast.missing
	if missing.Load() >= ballastItems-keep {
		return 0, false
	}
	for range ballastItems {
		i := s.ballast.next.Add(1) % ballastItems
		if missing[i/64].Load()&(1<<(i%64)) == 0 {
			return int(i), true
		}
	}
	return 0, false
}

func (s *server) ballastLost(i int) { s.ballast.missing[i/64].Or(1 << (i % 64)) }
func (s *server) ballastBack(i int) { s.ballast.missing[i/64].And(^(uint64(1) << (i % 64))) }

// missingBallast returns one item that is missing, and takes its mark away so
// that only one request brings it back.
func (s *server) missingBallast() (int, bool) {
	for w := range s.ballast.missing {
		word := &s.ballast.missing[w]
		for m := word.Load(); m != 0; m &= m - 1 {
			i := bits.TrailingZeros64(m)
			if bit := uint64(1) << i; word.And(^bit)&bit != 0 {
				return 64*w + i, true
			}
		}
	}
	return 0, false
}

// EnsureBallast adds the ballast items that are missing on each server. It must be
// called before the store fills: CreateLayer does. A server that has no room for all
// of them is not an error.
func (s *Store) EnsureBallast(ctx context.Context) error {
	for i := range s.servers {
		if err := s.servers[i].ensureBallast(ctx); err != nil {
			return &kvstore.OpError{Op: "ensure ballast", Server: s.servers[i].addr, Err: err}
		}
	}
	return nil
}

func (s *server) ensureBallast(ctx context.Context) error {
	var cmds [][]byte
	for i := range ballastItems {
		cmd := append(appendBallastAdd(nil, i), ballastZeros[:]...)
		cmds = append(cmds, append(cmd, "\r\n"...))
	}
	var full []int
	err := s.talkMany(ctx, cmds, func(in *lineReader) error {
		for i := range ballastItems {
			line, err := in.line()
			if err != nil {
				return err
			}
			rep, err := parseReply(line)
			switch {
			case err != nil:
				return err
			case rep.kind == replyStored || rep.kind == replyNotStored:
				s.ballastBack(i)
			case rep.kind == replyFull:
				full = append(full, i)
			case rep.kind == replyTooLarge:
				return errTooLarge
			default:
				return fmt.Errorf("add of ballast: %q", line)
			}
		}
		return nil
	})
	if err != nil || len(full) == 0 {
		return err
	}
	// A full server takes memory before it looks whether the item is there: it says
	// that of items that are there, too.
	var said *serverError
	if err = s.findBallast(ctx, full); errors.As(err, &said) {
		return nil // a proxy that does not know touch: the writes will find out
	}
	return err
}

// seekBallast finds out, beside the data path and once in the life of a store, which
// items are missing: what was given away before this process began is then brought
// back by its discards too. It adds nothing.
func (s *server) seekBallast() {
	if s.ballast.sought.Swap(true) {
		return
	}
	s.helpers.Go(func(ctx context.Context) {
		err := s.findBallast(ctx, allBallast())
		var said *serverError // as above
		if err != nil && !errors.As(err, &said) {
			s.ballast.sought.Store(false) // the next connection that is proven asks again
		}
	})
}

func allBallast() (items []int) {
	for i := range ballastItems {
		items = append(items, i)
	}
	return items
}

// findBallast marks those of the items that are missing. It asks by touch, whose answer
// has no value. All 256 are no ballast that was given away, but a server without a
// volume so far: whoever makes the first one will add it. While a write uses an item it
// looks missing; that costs one item until the next discard.
func (s *server) findBallast(ctx context.Context, items []int) error {
	var cmd []byte
	for _, i := range items {
		cmd = append(appendBallastKey(append(cmd, "touch "...), i), " 0\r\n"...)
	}
	var missing []int
	err := s.talk(ctx, cmd, func(in *lineReader) error {
		for _, i := range items {
			line, err := in.line()
			switch {
			case err != nil:
				return err
			case string(line) == "NOT_FOUND":
				missing = append(missing, i)
			case string(line) != "TOUCHED":
				return &serverError{string(line)}
			}
		}
		return nil
	})
	if err != nil || len(missing) == ballastItems {
		return err
	}
	for _, i := range missing {
		s.ballastLost(i)
	}
	return nil
}
