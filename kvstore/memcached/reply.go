package memcached

import (
	"bytes"
	"errors"
)

// maxLine bounds a reply line: "VALUE", a key of 250 bytes and three numbers
// need 310. A server that sends more without an end of line speaks something
// else.
const maxLine = 512

// errMalformed: the server answered what this protocol does not have.
var errMalformed = errors.New("malformed reply")

type replyKind uint8

const (
	replyStored replyKind = iota + 1
	replyNotStored
	replyExists
	replyNotFound
	replyDeleted
	replyEnd
	replyValue
	replyFull     // SERVER_ERROR out of memory storing object
	replyTooLarge // SERVER_ERROR object too large for cache
	replyError    // any other error
)

// reply is one parsed line. key points into the line.
type reply struct {
	kind  replyKind
	key   []byte
	flags uint32
	size  int // of the value that follows, without its \r\n
	cas   uint64
	isCas bool
}

// cutLine returns the first line of buf without \r\n and its length with it;
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

// parseReply reads one line, strictly: what it does not know is malformed.
func parseReply(line []byte) (reply, error) {
	switch string(line) {
	case "STORED":
		return reply{kind: replyStored}, nil
	case "NOT_STORED":
		return reply{kind: replyNotStored}, nil
	case "EXISTS":
		return reply{kind: replyExists}, nil
	case "NOT_FOUND":
		return reply{kind: replyNotFound}, nil
	case "DELETED":
		return reply{kind: replyDeleted}, nil
	case "END":
		return reply{kind: replyEnd}, nil
	case "SERVER_ERROR out of memory storing object":
		return reply{kind: replyFull}, nil
	case "SERVER_ERROR object too large for cache":
		return reply{kind: replyTooLarge}, nil
	}
	if bytes.HasPrefix(line, []byte("VALUE ")) {
		return parseValue(line[len("VALUE "):])
	}
	if string(line) == "ERROR" || bytes.HasPrefix(line, []byte("ERROR ")) ||
		bytes.HasPrefix(line, []byte("SERVER_ERROR ")) || bytes.HasPrefix(line, []byte("CLIENT_ERROR ")) {
		return reply{kind: replyError}, nil
	}
	return reply{}, errMalformed
}

// parseValue reads "key flags bytes[ cas]".
func parseValue(rest []byte) (r reply, err error) {
	sp := bytes.IndexByte(rest, ' ')
	if sp <= 0 || sp > maxName {
		return r, errMalformed
	}
	r.kind = replyValue
	r.key = rest[:sp]
	flags, rest, ok := cutNumber(rest[sp+1:], 1<<32-1)
	if !ok || len(rest) == 0 {
		return reply{}, errMalformed
	}
	size, rest, ok := cutNumber(rest[1:], 1<<31-1)
	if !ok {
		return reply{}, errMalformed
	}
	r.flags, r.size = uint32(flags), int(size)
	if len(rest) > 0 {
		r.cas, rest, ok = cutNumber(rest[1:], 1<<64-1)
		r.isCas = true
		if !ok || len(rest) > 0 {
			return reply{}, errMalformed
		}
	}
	return r, nil
}

// cutNumber reads a decimal number of at most max up to a space or the end; rest
// begins with the space.
func cutNumber(b []byte, max uint64) (v uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(b) && b[i] != ' '; i++ {
		d := uint64(b[i] - '0')
		if d > 9 || v > max/10 || v*10 > max-d {
			return 0, nil, false
		}
		v = v*10 + d
	}
	return v, b[i:], i > 0
}
