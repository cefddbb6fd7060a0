package redis

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/kvbfs/kvbfs/kvstore"
)

// step is what a request sends next.
type step uint8

const (
	stepGet     step = iota // GET: the block
	stepGets                // GET: the block, and the tag as its version
	stepReplace             // Present: SET XX
	stepAdd                 // Absent: SET NX
	stepSet                 // Any: SET
	stepSame                // Same: the script
	stepFull                // any of the writes above on a full server: the script
	stepOver                // Any on a full server: the script, only if present
	stepCompare             // a repeated write that is refused: is what is stored ours?
	stepDelete              // Discard
	stepFlush               // see flush.go
)

// request is an operation on its way. Its life:
//
//	queue --encode--> flight --reply--> done, or queue again with another step
//	flight --connection fails--> queue again, repeated
//	flight --MOVED or ASK--> queue of another node's connection
type request struct {
	op   *kvstore.Op // nil for the channel's own requests
	step step
	// repeated: an earlier try of this very step may have been executed.
	repeated bool
	// asking: this try begins with ASKING, whose reply comes first.
	asking bool
	// hops counts the MOVED and ASK since the last pause.
	hops uint8
	// part counts the replies of this try that have arrived, where there are several.
	part uint8
	// short: the flush is not confirmed by all that must confirm it.
	short bool
	parts flushParts // of stepFlush
	entry int        // in the channel's ledger, plus 1; 0: none
	node  *node      // where it goes
	tag   uint64
	key   [kvstore.KeySize]byte
}

func (r *request) writes() bool { return r.op != nil && r.op.Code != kvstore.Read }

// scatters says whether a good reply has the one form of blockReply.
func (r *request) scatters() bool { return !r.asking && (r.step == stepGet || r.step == stepGets) }

// minReply is the length of the shortest reply to a write or discard.
func (r *request) minReply() int {
	switch r.step {
	case stepSet, stepReplace, stepAdd:
		return len("+OK\r\n") // and of "$-1\r\n"
	case stepCompare:
		return len("$-1\r\n")
	}
	return len(":1\r\n")
}

// begin sets the first step of an operation.
func (r *request) begin(op *kvstore.Op, tag uint64) {
	*r = request{op: op, tag: tag}
	op.Key.Put(r.key[:])
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
		r.step = stepSame
	default:
		r.step = stepSet
	}
}

// outcome is what a reply leads to.
type outcome uint8

const (
	outMore  outcome = iota // another reply of this request is to come
	outDone                 // the result is there
	outAgain                // queue it again, with the step it has now
	outLater                // queue it again, after a pause
	outMoved                // queue it at the node that the error line names
)

// errSpent ends a connection whose front request is settled: what would follow on it
// is worth less than a new one.
var errSpent = errors.New("too much to read for nothing")

// serverError is an error line of a server.
type serverError struct{ line string }

func (e *serverError) Error() string { return fmt.Sprintf("server said %q", e.line) }

// accept decides what a reply means. bad means that the connection is of no use
// any more; with outDone the request is settled all the same.
func (r *request) accept(rep reply) (out outcome, result, bad error) {
	if r.asking && r.part == 0 && rep.kind == replyStatus {
		r.part = 1
		return outMore, nil, nil
	}
	if r.asking && r.part == 0 {
		// The reply to the command itself is still to come, and must not be taken for
		// the next request's.
		if rep.kind == replyError {
			return outMore, nil, &serverError{string(rep.line)}
		}
		return outMore, nil, errMalformed
	}
	if r.step == stepFlush {
		return r.acceptFlush(rep)
	}
	if rep.kind == replyError {
		return r.refused(rep)
	}
	switch r.step {
	case stepGet, stepGets, stepCompare:
		return r.acceptBlock(rep)
	case stepDelete:
		if rep.kind == replyInt {
			return outDone, nil, nil
		}
	case stepReplace, stepAdd, stepSet:
		switch {
		case rep.kind == replyStatus:
			return outDone, nil, nil
		case rep.kind == replyNil && r.step == stepReplace:
			return outDone, kvstore.ErrAbsent, nil
		case rep.kind == replyNil && r.step == stepAdd:
			return r.expectationFails()
		}
	case stepSame, stepFull, stepOver:
		if rep.kind == replyInt {
			return r.acceptScript(rep.n)
		}
	}
	return outDone, nil, errMalformed
}

// refused looks at an error reply.
func (r *request) refused(rep reply) (outcome, error, error) {
	switch classify(rep.line) {
	case refuseFull:
		out, err := r.full()
		return out, err, nil
	case refuseType:
		if r.step == stepCompare {
			return outDone, r.refusal(), nil
		}
		return outDone, &kvstore.CorruptError{}, nil
	case refuseMoved, refuseAsk:
		return outMoved, nil, nil
	case refuseLater:
		return outLater, &serverError{string(rep.line)}, nil
	}
	// Among others READONLY: a master that became a replica. The next dial goes to
	// the new one.
	return outMore, nil, &serverError{string(rep.line)}
}

// acceptScript takes the script's number.
func (r *request) acceptScript(n int64) (outcome, error, error) {
	switch {
	case n == 1:
		return outDone, nil, nil
	case n == 0:
		return r.expectationFails()
	case n == -1 && r.step == stepOver:
		return outDone, kvstore.ErrFull, nil
	case n == -1:
		return outDone, kvstore.ErrAbsent, nil
	}
	return outDone, nil, errMalformed
}

// expectationFails: absent or same is refused. A repeated one may have met itself.
func (r *request) expectationFails() (outcome, error, error) {
	if r.repeated {
		r.step = stepCompare
		return outAgain, nil, nil
	}
	return outDone, r.refusal(), nil
}

// refusal is the error of an expectation that does not hold.
func (r *request) refusal() error {
	if r.op.Expect == kvstore.Same {
		return kvstore.ErrConflict
	}
	return kvstore.ErrExists
}

// maxSpare is how many vital new blocks a full server takes, 5 MiB: it counts
// from when it was last seen with room.
const maxSpare = 1024

// full decides what an out-of-memory reply means; the old value is untouched. An
// overwrite takes no more room than there was, and blocks of the map are few:
// both are done by the script, which Redis lets pass. What is vital passes while
// there is some to spare.
func (r *request) full() (outcome, error) {
	if r.step == stepFull || r.step == stepOver || r.step == stepSame {
		return outDone, kvstore.ErrFull // a server that does not know allow-oom
	}
	data := r.op.Key.Kind == kvstore.KindBlock
	switch {
	case r.step == stepReplace || !data:
	case r.op.Vital && r.node.spare.Add(1) <= maxSpare:
	case r.step == stepSet:
		r.step = stepOver
		return outAgain, nil
	default:
		return outDone, kvstore.ErrFull
	}
	r.step = stepFull
	return outAgain, nil
}

// acceptBlock takes the reply to a GET.
func (r *request) acceptBlock(rep reply) (outcome, error, error) {
	switch rep.kind {
	case replyNil:
		if r.step == stepCompare {
			// Gone again meanwhile: whoever removed it was later than our first try.
			return outDone, kvstore.ErrConflict, nil
		}
		return outDone, kvstore.ErrAbsent, nil
	case replyHuge:
		return outDone, r.wrongLength(int(rep.n)), errSpent
	case replyBulk:
	default:
		return outDone, nil, errMalformed
	}
	if len(rep.data) != valueSize {
		return outDone, r.wrongLength(len(rep.data)), nil
	}
	if r.step == stepCompare {
		if _, tag := readTrailer(rep.data[kvstore.BlockSize:]); tag == r.tag {
			return outDone, nil, nil
		}
		return outDone, r.refusal(), nil
	}
	copy(r.op.Data, rep.data)
	return outDone, r.take(rep.data[kvstore.BlockSize:]), nil
}

// take checks a block whose data is in place.
func (r *request) take(end []byte) error {
	sum, tag := readTrailer(end)
	if sum != kvstore.Checksum(r.op.Seed, r.op.Key, r.op.Data) {
		return &kvstore.CorruptError{Length: kvstore.BlockSize, Sum: sum, Mask: ^uint32(0)}
	}
	if r.step == stepGets {
		r.op.Version = tag
	}
	return nil
}

// wrongLength is the result of meeting a value that is no block.
func (r *request) wrongLength(n int) error {
	if r.step == stepCompare {
		return r.refusal()
	}
	return &kvstore.CorruptError{Length: n}
}

// head appends what is sent before the data: all of it if there is no data.
func (r *request) head(b []byte) []byte {
	if r.asking {
		b = append(b, askingWords...)
	}
	switch r.step {
	case stepGet, stepGets, stepCompare:
		b = append(b, getHead...)
	case stepDelete:
		b = append(b, delHead...)
	case stepSet:
		b = append(b, setHead...)
	case stepReplace, stepAdd:
		b = append(b, setIfHead...)
	case stepFlush:
		var keys flushKeys
		r.parts, keys = r.node.flushParts()
		return r.node.appendFlush(b, r.parts, keys)
	default:
		b = append(b, storeHead...)
		b = append(b, r.key[:]...)
		return append(b, blockArg...)
	}
	b = append(b, r.key[:]...)
	if r.hasData() {
		return append(b, dataHead...)
	}
	return append(b, '\r', '\n')
}

// hasData says whether op.Data follows the head, and tail that.
func (r *request) hasData() bool { return r.step >= stepReplace && r.step <= stepOver }

// tail appends what follows the data.
func (r *request) tail(b []byte) []byte {
	var end [trailer]byte
	putTrailer(end[:], kvstore.Checksum(r.op.Seed, r.op.Key, r.op.Data), r.tag)
	script := r.step == stepSame || r.step == stepFull || r.step == stepOver
	if script {
		b = append(b, "\r\n$12\r\n"...)
	}
	b = append(b, end[:]...)
	b = append(b, '\r', '\n')
	switch {
	case r.step == stepAdd:
		return append(b, "$2\r\nNX\r\n"...)
	case r.step == stepReplace:
		return append(b, "$2\r\nXX\r\n"...)
	case script:
		return r.condition(b)
	}
	return b
}

// condition appends the script's last argument.
func (r *request) condition(b []byte) []byte {
	switch {
	case r.step == stepSame:
		b = append(b, "$8\r\n"...)
		for i := range tagSize {
			b = append(b, byte(r.op.Version>>(56-8*i)))
		}
		return append(b, '\r', '\n')
	case r.step == stepOver || r.op.Expect == kvstore.Present:
		return append(b, "$2\r\nXX\r\n"...)
	case r.op.Expect == kvstore.Absent:
		return append(b, "$2\r\nNX\r\n"...)
	}
	return append(b, "$0\r\n\r\n"...)
}

// appendInt appends a number as an argument.
func appendInt(b []byte, n int) []byte {
	text := strconv.Itoa(n)
	b = append(b, '$')
	b = strconv.AppendInt(b, int64(len(text)), 10)
	b = append(b, '\r', '\n')
	return append(append(b, text...), '\r', '\n')
}
