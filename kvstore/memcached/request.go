package memcached

import (
	"bytes"
	"strconv"

	"github.com/kvbfs/kvbfs/kvstore"
)

// step is what a request sends next.
type step uint8

const (
	stepGet      step = iota // get: the block
	stepGets                 // gets: the block and its version
	stepReplace              // Present
	stepAdd                  // Absent
	stepCas                  // Same
	stepAnyOver              // Any, first half: replace
	stepAnyNew               // Any, second half: add
	stepCompare              // a repeated add or cas: is what is stored ours?
	stepDelete               // Discard
	stepSentinel             // Flush: does the server still know the pool?
	stepBallast              // give a lost ballast item back
)

// request is an operation on its way: one command at a time, or with ballast
// three in one piece. Its life:
//
//	queue --encode--> flight --reply--> done, or queue again with another step
//	flight --connection fails--> queue again, repeated
type request struct {
	op   *kvstore.Op // nil for the channel's own requests
	step step
	// repeated: an earlier try of this very step may have been executed.
	repeated bool
	// ballast is 1 + the number of the ballast item that makes room; 0: none.
	ballast uint16
	// part counts the replies of a request with ballast that have arrived.
	part uint8
	// tries counts ballast items that did not help.
	tries uint8
	// gone: the ballast item that is being tried was not there.
	gone bool
	// more says that the next request in flight is another key of the same get.
	more bool
	// outcome of the middle command, while the last reply is awaited.
	outcome replyKind
	server  *server
	key     [keyLen]byte
}

func (r *request) writes() bool { return r.op != nil && r.op.Code != kvstore.Read }

// begin sets the first step of an operation.
func (r *request) begin(op *kvstore.Op, srv *server) {
	*r = request{op: op, server: srv}
	putKey(&r.key, op.Key)
	switch {
	case op.Code == kvstore.Read && op.Versioned:
		r.step = stepGets
	case op.Code == kvstore.Read:
		r.step = stepGet
	case op.Code == kvstore.Discard:
		r.step = stepDelete
	case op.Expect == kvstore.Present:
		r.step = stepReplace
	case op.Expect == kvstore.Absent:
		r.step = stepAdd
	case op.Expect == kvstore.Same:
		r.step = stepCas
	default:
		r.step = stepAnyOver
	}
}

// joins says whether o can be another key of the get that r ends.
func (r *request) joins(o *request) bool {
	return r.step == o.step && (r.step == stepGet || r.step == stepGets)
}

// reserved says whether the write may use ballast: overwrites, all blocks of the
// map, and what is vital. Another new data block may not: it gets ErrFull.
func (r *request) reserved() bool {
	return r.op.Vital || r.op.Key.Kind != kvstore.KindBlock || r.step == stepReplace || r.step == stepCas || r.step == stepAnyOver
}

// then goes on with another step.
func (r *request) then(s step) {
	r.step, r.repeated, r.ballast, r.part = s, false, 0, 0
}

// next is what a reply leads to.
type next uint8

const (
	nextDone  next = iota // with an error or nil
	nextAgain             // queue it again, with the step it has now
)

// settle decides what the reply to a write or delete command means.
func (r *request) settle(kind replyKind) (next, error, bool) {
	switch r.step {
	case stepReplace, stepAnyOver, stepAdd, stepAnyNew, stepCas:
		if kind == replyFull {
			n, err := r.full()
			return n, err, true
		}
		if kind == replyTooLarge {
			return nextDone, errTooLarge, true
		}
		if kind == replyStored {
			return nextDone, nil, true
		}
	}
	switch {
	case r.step == stepReplace && kind == replyNotStored:
		return nextDone, kvstore.ErrAbsent, true
	case r.step == stepAnyOver && kind == replyNotStored:
		r.then(stepAnyNew)
		return nextAgain, nil, true
	case r.step == stepAnyNew && kind == replyNotStored:
		// Somebody was faster, or our own first try was: overwrite.
		r.then(stepAnyOver)
		return nextAgain, nil, true
	case r.step == stepAdd && kind == replyNotStored, r.step == stepCas && kind == replyExists:
		if r.repeated {
			r.step = stepCompare
			return nextAgain, nil, true
		}
		return nextDone, r.refusal(), true
	case r.step == stepCas && kind == replyNotFound:
		return nextDone, kvstore.ErrAbsent, true
	case r.step == stepDelete && (kind == replyDeleted || kind == replyNotFound):
		return nextDone, nil, true
	case r.step == stepBallast && (kind == replyStored || kind == replyNotStored || kind == replyFull):
		return nextDone, nil, true
	}
	return nextDone, nil, false
}

// refusal is the error of an expectation that does not hold.
func (r *request) refusal() error {
	if r.op.Expect == kvstore.Same {
		return kvstore.ErrConflict
	}
	return kvstore.ErrExists
}

// maxBallastTries bounds how many ballast items one write may try: others may
// snatch the room that each makes. An item that turns out to have been missing does
// not count: it made no room, and now that it is marked nobody tries it again.
const maxBallastTries = 32

// full decides what an out-of-memory reply means. A failed replace, add or cas
// leaves the old value alone.
func (r *request) full() (next, error) {
	if !r.reserved() || r.tries >= maxBallastTries {
		return nextDone, kvstore.ErrFull
	}
	keep := 0
	if r.op.Key.Kind == kvstore.KindBlock && (r.step == stepAdd || r.step == stepAnyNew) {
		keep = ballastKept
	}
	i, ok := r.server.pickBallast(keep)
	if !ok {
		return nextDone, kvstore.ErrFull
	}
	r.tries++
	r.ballast = uint16(i) + 1
	return nextAgain, nil
}

// accept consumes the reply at the beginning of buf: n is what it consumed. If
// nothing is consumed, done or bad, then the reply is not complete yet. bad means
// that the connection is of no use any more; the request is settled all the same
// if done. group is r and what is in flight behind it.
func (r *request) accept(buf []byte, group []*request) (n int, done bool, result error, bad error) {
	line, n, err := cutLine(buf)
	if err != nil || n == 0 {
		return 0, false, nil, err
	}
	rep, err := parseReply(line)
	if err != nil {
		return 0, false, nil, err
	}
	if rep.kind == replyError {
		return 0, false, nil, &serverError{string(line)}
	}
	switch r.step {
	case stepGet, stepGets, stepCompare:
		if r.more {
			if rep.kind == replyEnd {
				return 0, true, kvstore.ErrAbsent, nil // the last of the group consumes it
			}
			if rep.kind == replyValue && string(rep.key) != string(r.key[:]) && laterInGroup(group, rep.key) {
				return 0, true, kvstore.ErrAbsent, nil
			}
		}
		return r.acceptBlock(rep, n, buf)
	case stepSentinel:
		n, ok, bad := acceptSentinel(rep, n, buf, r.server.sentinelKey, r.server.sentinelValue)
		if n > 0 && !ok {
			result = kvstore.ErrServerLost
		}
		return n, n > 0, result, bad
	}
	if r.ballast > 0 {
		return r.acceptBallast(rep.kind, n)
	}
	nx, result, ok := r.settle(rep.kind)
	if !ok {
		return 0, false, nil, errMalformed
	}
	if r.step == stepBallast {
		if rep.kind == replyFull {
			r.server.ballastLost(int(r.ballastNumber()))
		} else {
			r.server.ballastBack(int(r.ballastNumber()))
		}
	}
	return n, nx == nextDone, result, nil
}

// acceptBallast takes one of the three replies: delete, the write, add.
func (r *request) acceptBallast(kind replyKind, n int) (int, bool, error, error) {
	part := r.part
	r.part++
	switch part {
	case 0:
		if kind != replyDeleted && kind != replyNotFound {
			return 0, false, nil, errMalformed
		}
		r.gone = kind == replyNotFound
		return n, false, nil, nil
	case 1:
		r.outcome = kind
		return n, false, nil, nil
	}
	i := int(r.ballast) - 1
	switch kind {
	case replyStored, replyNotStored:
	case replyFull:
		r.server.ballastLost(i)
		if r.gone {
			r.tries--
		}
	default:
		return 0, false, nil, errMalformed
	}
	r.ballast, r.part = 0, 0
	nx, result, ok := r.settle(r.outcome)
	if !ok {
		return 0, false, nil, errMalformed
	}
	return n, nx == nextDone, result, nil
}

// laterInGroup says whether a key was asked for by the same get, behind the
// first of the group: the server leaves out what is absent, and keeps the order.
func laterInGroup(group []*request, key []byte) bool {
	for i := 1; i < len(group) && group[i-1].more; i++ {
		if string(group[i].key[:]) == string(key) {
			return true
		}
	}
	return false
}

// valueEnd follows the data of the last key of a get, the first two bytes that
// of the others.
var valueEnd = []byte("\r\nEND\r\n")

// acceptBlock takes the reply to one key of a get.
func (r *request) acceptBlock(rep reply, n int, buf []byte) (int, bool, error, error) {
	if rep.kind == replyEnd {
		if r.step == stepCompare {
			// Gone again meanwhile: whoever removed it was later than our first try.
			return n, true, kvstore.ErrConflict, nil
		}
		return n, true, kvstore.ErrAbsent, nil
	}
	if rep.kind != replyValue || string(rep.key) != string(r.key[:]) || rep.isCas != (r.step == stepGets) {
		return 0, false, nil, errMalformed
	}
	tail := valueEnd
	if r.more {
		tail = valueEnd[:2]
	}
	total := n + rep.size + len(tail)
	if total > bufferSize {
		// Too much to read for nothing: give the connection up.
		return 0, true, r.wrongLength(rep.size), errMalformed
	}
	if len(buf) < total {
		return 0, false, nil, nil
	}
	if string(buf[total-len(tail):total]) != string(tail) {
		return 0, false, nil, errMalformed
	}
	if rep.size != kvstore.BlockSize {
		return total, true, r.wrongLength(rep.size), nil
	}
	return total, true, r.take(rep, buf[n:n+kvstore.BlockSize]), nil
}

// take gives a block of the right length to the operation.
func (r *request) take(rep reply, data []byte) error {
	op := r.op
	if r.step == stepCompare {
		if rep.flags == blockFlags(op.Seed, op.Key, op.Data) && bytes.Equal(data, op.Data) {
			return nil
		}
		return r.refusal()
	}
	copy(op.Data, data)
	if rep.flags != blockFlags(op.Seed, op.Key, op.Data) {
		return corruptBlock(uint64(rep.flags))
	}
	if r.step == stepGets {
		op.Version = rep.cas
	}
	return nil
}

// corruptBlock is the result of meeting an item of a block's length whose flags
// are not the block's.
func corruptBlock(flags uint64) error {
	e := &kvstore.CorruptError{Length: kvstore.BlockSize}
	if flags>>31 == 1 { // the mark, and nothing above it
		e.Sum, e.Mask = uint32(flags)&^flagsMark, ^uint32(flagsMark)
	}
	return e
}

// wrongLength is the result of meeting an item that is no block.
func (r *request) wrongLength(n int) error {
	if r.step == stepCompare {
		return r.refusal()
	}
	return &kvstore.CorruptError{Length: n}
}

// acceptSentinel takes the reply to the get of a sentinel; n is 0 if it is not
// complete yet. An error and n: not ours, and the connection is of no use any more.
func acceptSentinel(rep reply, n int, buf []byte, key string, want []byte) (int, bool, error) {
	if rep.kind == replyEnd {
		return n, false, nil
	}
	if rep.kind != replyValue || string(rep.key) != key || rep.isCas {
		return 0, false, errMalformed
	}
	total := n + rep.size + len(valueEnd)
	if total > bufferSize {
		// Too much to read for nothing: Join takes no sentinel of half that size.
		return n, false, errMalformed
	}
	if len(buf) < total {
		return 0, false, nil
	}
	if !bytes.Equal(buf[total-len(valueEnd):total], valueEnd) {
		return 0, false, errMalformed
	}
	return total, bytes.Equal(buf[n:n+rep.size], want), nil
}

// ballastNumber of a stepBallast request, which keeps it where tries is.
func (r *request) ballastNumber() uint8 { return r.tries }

// head appends what is sent before the data: all of it if there is no data.
func (r *request) head(b []byte) []byte {
	switch r.step {
	case stepGet, stepCompare:
		b = append(b, "get "...)
		b = append(b, r.key[:]...)
		return append(b, "\r\n"...)
	case stepGets:
		b = append(b, "gets "...)
		b = append(b, r.key[:]...)
		return append(b, "\r\n"...)
	case stepDelete:
		b = append(b, "delete "...)
		b = append(b, r.key[:]...)
		return append(b, "\r\n"...)
	case stepSentinel:
		b = append(b, "get "...)
		b = append(b, r.server.sentinelKey...)
		return append(b, "\r\n"...)
	case stepBallast:
		return appendBallastAdd(b, int(r.ballastNumber()))
	}
	if r.ballast > 0 {
		b = append(b, "delete "...)
		b = appendBallastKey(b, int(r.ballast)-1)
		b = append(b, "\r\n"...)
	}
	flags := blockFlags(r.op.Seed, r.op.Key, r.op.Data)
	switch r.step {
	case stepReplace, stepAnyOver:
		b = appendStore(b, "replace", r.key[:], flags)
	case stepAdd, stepAnyNew:
		b = appendStore(b, "add", r.key[:], flags)
	case stepCas:
		b = appendStore(b, "cas", r.key[:], flags)
		b = append(b, ' ')
		b = strconv.AppendUint(b, r.op.Version, 10)
	}
	return append(b, "\r\n"...)
}

// hasData says whether op.Data follows the head.
func (r *request) hasData() bool { return r.step >= stepReplace && r.step <= stepAnyNew }
