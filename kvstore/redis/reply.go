package redis

import (
	"bytes"
	"errors"
)

// maxLine bounds the first line of a reply; errors of scripts quote long pieces.
const maxLine = 4096

// errMalformed: the server answered what this protocol does not have, or what
// does not fit the command.
var errMalformed = errors.New("malformed reply")

type replyKind uint8

const (
	replyStatus replyKind = iota + 1 // +OK
	replyNil                         // $-1: absent, or an expectation that does not hold
	replyBulk                        // $n: data
	replyInt                         // :n
	replyInts                        // *n of :n
	replyHuge                        // $n with more than fits the buffer: only the line is consumed
	replyError                       // -ERR ...
)

// maxInts is how many integers a reply has at most (WAITAOF: 2).
const maxInts = 4

// reply is one parsed reply of RESP2. data and line point into the buffer.
type reply struct {
	kind replyKind
	line []byte // of a status or an error, without its mark
	data []byte
	n    int64 // of replyInt; of replyHuge the length
	ints [maxInts]int64
}

// cutLine returns the first line of buf without \r\n, and its length with it;
// n is 0 if the line is not complete yet.
func cutLine(buf []byte) (line []byte, n int, err error) {
	i := bytes.IndexByte(buf[:min(len(buf), maxLine)], '\n')
	if i < 0 {
		if len(buf) >= maxLine {
			return nil, 0, errMalformed
		}
		return nil, 0, nil
	}
	if i == 0 || buf[i-1] != '\r' {
		return nil, 0, errMalformed
	}
	return buf[:i-1], i + 1, nil
}

// parseReply takes the reply at the beginning of buf, strictly: what it does not
// know is malformed. n is its length, 0 if it is not complete yet. Bulks of more
// than largest bytes are replyHuge.
func parseReply(buf []byte, largest int) (rep reply, n int, err error) {
	line, n, err := cutLine(buf)
	if err != nil || n == 0 {
		return reply{}, 0, err
	}
	if len(line) == 0 {
		return reply{}, 0, errMalformed
	}
	switch line[0] {
	case '+':
		return reply{kind: replyStatus, line: line[1:]}, n, nil
	case '-':
		return reply{kind: replyError, line: line[1:]}, n, nil
	case ':':
		v, ok := parseInt(line[1:])
		if !ok {
			return reply{}, 0, errMalformed
		}
		return reply{kind: replyInt, n: v}, n, nil
	case '$':
		return parseBulk(line[1:], buf, n, largest)
	case '*':
		return parseInts(line[1:], buf, n)
	}
	return reply{}, 0, errMalformed
}

// maxBulk is Redis's own limit of a value (proto-max-bulk-len).
const maxBulk = 512 << 20

func parseBulk(size, buf []byte, n, largest int) (reply, int, error) {
	v, ok := parseInt(size)
	switch {
	case !ok || v < -1 || v > maxBulk:
		return reply{}, 0, errMalformed
	case v == -1:
		return reply{kind: replyNil}, n, nil
	case v > int64(largest):
		return reply{kind: replyHuge, n: v}, n, nil
	}
	end := n + int(v)
	if len(buf) < end+2 {
		return reply{}, 0, nil
	}
	if buf[end] != '\r' || buf[end+1] != '\n' {
		return reply{}, 0, errMalformed
	}
	return reply{kind: replyBulk, data: buf[n:end]}, end + 2, nil
}

func parseInts(count, buf []byte, n int) (rep reply, _ int, err error) {
	v, ok := parseInt(count)
	if !ok || v < 1 || v > maxInts {
		return reply{}, 0, errMalformed
	}
	rep.kind = replyInts
	for i := range v {
		line, k, err := cutLine(buf[n:])
		if err != nil || k == 0 {
			return reply{}, 0, err
		}
		if len(line) == 0 || line[0] != ':' {
			return reply{}, 0, errMalformed
		}
		if rep.ints[i], ok = parseInt(line[1:]); !ok {
			return reply{}, 0, errMalformed
		}
		n += k
	}
	return rep, n, nil
}

// parseInt reads a whole decimal number with an optional minus.
func parseInt(b []byte) (int64, bool) {
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	v := int64(0)
	for _, c := range b {
		d := c - '0'
		if d > 9 {
			return 0, false
		}
		v = v*10 + int64(d)
	}
	if negative {
		v = -v
	}
	return v, true
}

// refusal is what an error reply means to us.
type refusal uint8

const (
	refuseOther   refusal = iota // this connection is of no use
	refuseFull                   // OOM
	refuseType                   // WRONGTYPE: somebody else's value under our key
	refuseMoved                  // MOVED: another node has the slot
	refuseAsk                    // ASK: another node has this key already
	refuseLater                  // asked again later, here
	refuseReplica                // READONLY: no master any more
	refuseAccess                 // NOAUTH, WRONGPASS, NOPERM
)

// later are errors that pass: a server that loads its data, is busy with a
// script, has no majority, cannot write its log, or misses its replicas.
var later = [][]byte{
	[]byte("LOADING"), []byte("BUSY"), []byte("TRYAGAIN"), []byte("CLUSTERDOWN"), []byte("MASTERDOWN"),
	[]byte("MISCONF"), []byte("NOREPLICAS"),
}

// classify looks at the first word of an error line.
func classify(line []byte) refusal {
	word, _, _ := bytes.Cut(line, []byte(" "))
	switch string(word) {
	case "OOM":
		return refuseFull
	case "WRONGTYPE":
		return refuseType
	case "MOVED":
		return refuseMoved
	case "ASK":
		return refuseAsk
	case "READONLY":
		return refuseReplica
	case "NOAUTH", "WRONGPASS", "NOPERM":
		return refuseAccess
	}
	for _, w := range later {
		if bytes.Equal(word, w) {
			return refuseLater
		}
	}
	return refuseOther
}

// redirection reads "MOVED slot host:port" or "ASK slot host:port".
func redirection(line []byte) (slot int, addr string, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 3 {
		return 0, "", false
	}
	v, ok := parseInt(f[1])
	if !ok || v < 0 || v >= slotCount || len(f[2]) < 2 {
		return 0, "", false
	}
	return int(v), string(f[2]), true
}
