package uring

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// ColdServer makes a server for the operations that need no speed, on the same
// file system: go-fuse parses and calls, only the carriage is ours. ks is what
// INIT negotiated on /dev/fuse; the new server is told the same by an INIT of
// its own, which never reaches the kernel.
func ColdServer(fs fuse.RawFileSystem, opts *fuse.MountOptions, ks *fuse.InitIn) (*fuse.ProtocolServer, error) {
	ps := fuse.NewProtocolServer(fs, opts)
	in := *ks
	in.Length = uint32(unsafe.Sizeof(in))
	in.Opcode = 26 // FUSE_INIT
	in.Unique = 2
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in))
	out := make([]byte, 4096)
	if _, st := ps.HandleRequest([][]byte{raw}, [][]byte{out}); !st.Ok() {
		return nil, fmt.Errorf("INIT of the server for cold operations: %v", st)
	}
	return ps, nil
}

// Cold serves an entry by go-fuse and returns what to answer with. It may block
// and allocates: call it on a goroutine of its own, then Entry.Later.
func Cold(ps *fuse.ProtocolServer, e *Entry) (errno, n int) {
	in := make([]byte, 0, int(e.In().Length))
	in = append(in, e.header[:InHeaderSize]...)
	in = append(in, e.Args()...)
	in = append(in, e.Payload()...)
	out := make([]byte, outHeaderLen+len(e.payload))
	got, st := ps.HandleRequest([][]byte{in}, [][]byte{out})
	if !st.Ok() {
		return int(syscall.EIO), 0
	}
	if got < outHeaderLen {
		return 0, 0 // an operation without a reply; the entry still must go back
	}
	if e := *(*int32)(unsafe.Pointer(&out[4])); e != 0 {
		return int(-e), 0
	}
	return 0, copy(e.payload, out[outHeaderLen:got])
}
