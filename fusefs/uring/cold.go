package uring

import "encoding/binary"

// Raw returns a copy of the request as /dev/fuse would have delivered it, for the
// operations that need no speed.
func (e *Entry) Raw() []byte {
	args, payload := e.Args(), e.Payload()
	// What is there counts, not the length that the header claims.
	raw := make([]byte, 0, InHeaderSize+len(args)+len(payload))
	raw = append(raw, e.header[:InHeaderSize]...)
	raw = append(raw, args...)
	return append(raw, payload...)
}

// LaterRaw answers as Later does, with a reply that has its header, as it would be
// written to /dev/fuse. An empty one, of an operation without a reply, gives the
// entry back all the same.
func (e *Entry) LaterRaw(reply []byte) {
	if len(reply) < outHeaderLen {
		e.Later(0, 0)
		return
	}
	if errno := int32(binary.NativeEndian.Uint32(reply[4:])); errno != 0 {
		e.Later(int(-errno), 0)
		return
	}
	e.Later(0, copy(e.payload, reply[outHeaderLen:]))
}
