package fusefs

import (
	"bytes"
	"encoding/binary"
	"io"
	"log"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// FuzzRequests decodes a script into FUSE requests, well-formed and not, and sends
// them to the file system by one of the transports, or by go-fuse's decoder alone, one
// by one or, over a transport, several as one batch. Every answer is compared with a model of names
// and bytes, and so is what the volumes hold in the end.
func FuzzRequests(f *testing.F) {
	for _, s := range wireScripts() {
		f.Add(s)
	}
	log.SetOutput(io.Discard) // go-fuse tells each request that is cut
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	r := newWireRig(f) // one for all: to make it takes longer than to use it
	broken := false
	f.Fuzz(func(t *testing.T, b []byte) {
		if broken { // what a failure left must not fail others
			runWireScript(newWireRig(t), b)
			return
		}
		r.t, broken = t, true
		defer func() { r.t = f }()
		runWireScript(r, b)
		broken = false
	})
}

// wireScripts are scripts to begin with: each kind of request, each way.
func wireScripts() (out [][]byte) {
	for transport := range byte(wireWays) {
		s := []byte{transport, kLookup, 0, 0, kOpen, 0, 0, 2}
		s = append(s, kWrite, 0, 0, 0, 0, 0, 8, 7, kRead, 0, 0, 0, 0, 0, 8, kFsync, 0, 0, kFallocate, 0, 0, 0, 8, 0, 8, 1)
		s = append(s, kLseek, 0, 0, 0, 0, 3, kGetattr, 0, 0, kSetattr, 0, 0, 8, 20, kRelease, 0, 0)
		out = append(out, s)
		s = []byte{transport, kCreate, 0, 1, 2, kSetattr, 0, 0, 8, 4, kWrite, 0, 0, 0, 1, 0, 3, 9, kRead, 0, 0, 0, 0, 0, 8, kUnlink, 0, 1}
		out = append(out, append(s, kForget, 0, 0, 1, kDir, 0, 0, kDir, 0, 1, kDir, 0, 2, kOther, 0, 5, 3))
		s = []byte{transport, kLookup, 0, 0, kOpen, 0, 0, 2}
		for i := range byte(6) {
			s = append(s, kWrite, hold, 0, 0, 32*i, 0, 8, i, kRead, hold|poke, 0, 0, 32*i, 0, 8, 41, i)
		}
		out = append(out, s)
	}
	return out
}

// TestRequestScripts runs the scripts that the fuzzer begins with, and says if they do
// not what they are meant to.
func TestRequestScripts(t *testing.T) {
	r := newWireRig(t)
	for _, s := range wireScripts() {
		runWireScript(r, s)
	}
	if ops, requests, _, _ := r.s.disp.sum(); requests < 20 || ops["write"].Requests < 4 {
		t.Errorf("%d data requests: %v", requests, ops)
	}
	if files, _ := filepath.Glob("testdata/fuzz/FuzzRequests/*"); len(files) == 0 && os.Getenv("CI") == "true" {
		t.Error("the corpus of FuzzRequests is gone")
	}
}

// Kinds of steps in a script.
const (
	kRead = iota
	kWrite
	kFallocate
	kFsync
	kLseek
	kOpen
	kRelease
	kLookup
	kGetattr
	kSetattr
	kCreate
	kForget
	kUnlink
	kDir
	kOther
	kinds
)

// Flags of a step.
const (
	poke = 0x80 // a byte of the request is changed before it is sent
	hold = 0x40 // over a transport: it waits for more, to go as one batch
	cut  = 0x20 // its length is not what it should be
)

// maxSteps bounds the work of one script.
const maxSteps = 24

// wireScript reads a script, whose end reads as zeros.
type wireScript struct {
	b      []byte
	m      *wireModel
	unique uint64
	room   []byte // for payloads, as much as all steps may have
}

// payload returns memory for n bytes of c, which change every 128 bytes.
func (s *wireScript) payload(n uint64, c byte) []byte {
	p := s.room[:n]
	s.room = s.room[n:]
	if c == 0 {
		clear(p)
		return p
	}
	for left := p; len(left) > 0; c++ {
		left = left[copy(left, wireRuns[c][:]):]
	}
	return p
}

// wireRuns are runs of one byte each.
var wireRuns = func() (runs [256][128]byte) {
	for c := range runs {
		for i := range runs[c] {
			runs[c][i] = byte(c)
		}
	}
	return runs
}()

// maxWireData is the most that length returns.
const maxWireData = 0xff*512 + 7*37

func (s *wireScript) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

func (s *wireScript) u16() uint64 { return uint64(s.byte())<<8 | uint64(s.byte()) }

func (s *wireScript) u64() (n uint64) {
	for range 8 {
		n = n<<8 | uint64(s.byte())
	}
	return n
}

// one of those that there are, or any number.
func (s *wireScript) pick(have []uint64) uint64 {
	c := s.byte()
	switch {
	case c >= 0xf0:
		return s.u64()
	case c >= 0xe0:
		return uint64(c & 15)
	case len(have) == 0:
		return 0
	}
	return have[int(c)%len(have)]
}

func keys[V any](m map[uint64]V) (out []uint64) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// off is a place: in units of 128 bytes and a bit beside, or anywhere.
func (s *wireScript) off() uint64 {
	v := s.u16()
	if v&0x8000 != 0 {
		return s.u64()
	}
	return v&0x3ff*128 + v>>10&3*11
}

// length of data: in units of 512 bytes, and a bit more or less.
func (s *wireScript) length() uint64 {
	v := s.u16()
	return v&0xff*512 + v>>8&7*37
}

var wireNames = []string{wireDisk, "new", statsName, "-bad", strings.Repeat("x", 64), strings.Repeat("x", 65), "a/b", "", "other"}

func (s *wireScript) name() []byte {
	c := s.byte()
	if c >= 0xe0 {
		name := make([]byte, c&15)
		for i := range name {
			name[i] = s.byte()
		}
		return name // perhaps without an end
	}
	return append([]byte(wireNames[int(c)%len(wireNames)]), 0)
}

func put32(b []byte, v ...uint32) []byte {
	for _, x := range v {
		b = binary.NativeEndian.AppendUint32(b, x)
	}
	return b
}

func put64(b []byte, v ...uint64) []byte {
	for _, x := range v {
		b = binary.NativeEndian.AppendUint64(b, x)
	}
	return b
}

// step reads one request.
func (s *wireScript) step() (q *wireRequest, held bool) {
	kind, flags := s.byte()%kinds, s.byte()
	q = &wireRequest{}
	op, node := uint32(0), uint64(rootID)
	switch kind {
	case kRead, kWrite, kFallocate, kFsync, kLseek, kRelease:
		op = s.data(q, kind)
	case kOpen:
		op, node = opOpen, s.pick(keys(s.m.byID))
		q.args = put32(nil, uint32(s.byte()&3), 0)
	case kLookup:
		op, q.payload = opLookup, s.name()
	case kGetattr:
		op, node = opGetattr, s.pick(keys(s.m.byID))
		q.args = put64(nil, 0, 0)
	case kSetattr:
		op, node = opSetattr, s.pick(keys(s.m.byID))
		valid, size := uint32(s.byte()), uint64(s.byte())
		if size *= kvstore.BlockSize; valid&0x80 != 0 {
			size = s.u64()
		}
		q.args = put32(put64(put32(nil, valid&0x7f, 0), 0, size, 0, 0, 0, 0), 0, 0, 0, 0o600, 0, s.m.uid, s.m.gid, 0)
	case kCreate:
		op, q.payload = opCreate, s.name()
		q.args = put32(nil, uint32(s.byte()), 0, 0, 0)
	case kForget:
		op, node = opForget, s.pick(keys(s.m.byID))
		q.args = put64(nil, uint64(s.byte()))
	case kUnlink:
		op, q.payload = opUnlink, s.name()
	case kDir:
		op = s.dir(q)
	default:
		op, node = uint32(s.byte()), uint64(s.byte())
		q.args = make([]byte, s.byte()&127)
	}
	s.unique += 2
	q.said = uint32(len(q.payload))
	copy(q.header[:], put32(nil, uint32(inHeader+len(q.args)+len(q.payload)), op))
	copy(q.header[8:], put64(nil, s.unique, node))
	s.spoil(q, flags)
	return q, flags&hold != 0
}

// data reads a request about an open file.
func (s *wireScript) data(q *wireRequest, kind byte) (op uint32) {
	fh := s.pick(keys(s.m.handles))
	switch kind {
	case kRead:
		q.args = put32(put64(nil, fh, s.off()), uint32(s.length()), 0)
		q.args = put32(put64(q.args, 0), 0, 0)
		return opRead
	case kWrite:
		off := s.off()
		n := s.length()
		q.payload = s.payload(n, s.byte())
		q.args = put32(put64(nil, fh, off), uint32(len(q.payload)), 0)
		q.args = put32(put64(q.args, 0), 0, 0)
		return opWrite
	case kFallocate:
		off, n, mode := s.off(), s.off(), s.byte()
		m := [...]uint32{0, 0x03, 0x10, 0x11, 0x01, 0x08}[mode%6]
		if mode > 0xf0 {
			m = uint32(mode)
		}
		q.args = put32(put64(nil, fh, off, n), m, 0)
		return opFallocate
	case kFsync:
		q.args = put32(put64(nil, fh), uint32(s.byte()&1), 0)
		return opFsync
	case kLseek:
		q.args = put32(put64(nil, fh, s.off()), uint32(s.byte()), 0)
		return opLseek
	}
	q.args = put64(put32(put64(nil, fh), 0, 0), 0)
	return opRelease
}

// dir reads a request about the directory.
func (s *wireScript) dir(q *wireRequest) (op uint32) {
	switch c := s.byte(); c % 5 {
	case 0:
		q.args = put32(nil, 0, 0)
		return opOpendir
	case 3:
		q.args = put64(put32(put64(nil, s.pick(keys(s.m.dirs))), 0, 0), 0)
		return opReleasedir
	case 4:
		return opStatfs
	default:
		q.args = put32(put64(nil, s.pick(keys(s.m.dirs)), uint64(s.byte()&7)), uint32(s.length()), 0)
		q.args = put32(put64(q.args, 0), 0, 0)
		if c%5 == 1 {
			return opReaddir
		}
		return opReaddirplus
	}
}

// spoil makes a request wrong, as the flags of its step say.
func (s *wireScript) spoil(q *wireRequest, flags byte) {
	if flags&poke != 0 {
		at, with := int(s.byte()), s.byte()
		if at < inHeader {
			q.header[at] ^= with
		} else if at -= inHeader; at < len(q.args) {
			q.args[at] ^= with
		}
	}
	if flags&cut != 0 {
		n := s.byte()
		q.said = uint32(n) << (n & 15)
		q.args = q.args[:min(len(q.args), int(n))]
	}
	// The extension of a request is go-fuse's alone, INIT comes once, and an answer to a
	// notification only after one. Two node numbers and a name are go-fuse's own.
	// The rig knows answers by the number of their request, which no kernel gives twice.
	copy(q.header[8:16], put64(nil, s.unique))
	q.header[36], q.header[37] = 0, 0
	if op := q.opcode(); op == opInit || op == opNotifyReply || op > 255 {
		copy(q.header[4:8], put32(nil, 200))
	}
	if q.node() == math.MaxUint64 {
		copy(q.header[16:24], put64(nil, 1<<40))
	}
	// Volumes as large as they may be would be too large for the model.
	if q.opcode() == opSetattr && len(q.args) >= 24 {
		if size := u64(q.args, 16); size > 1<<20 && size <= 1<<60 {
			copy(q.args[16:], put64(nil, size%(1<<20)))
		}
	}
}

func runWireScript(r *wireRig, b []byte) {
	s := &wireScript{b: b, m: newWireModel(r), room: r.room}
	way := wireWay(s.byte()) % wireWays
	var batch []*wireRequest
	send := func() {
		if len(batch) == 0 {
			return
		}
		answers, err := r.send(way, batch)
		if err != nil {
			r.t.Fatal(err)
		}
		for i, q := range batch {
			if err := s.m.judge(q, answers[i], way); err != nil {
				r.t.Fatalf("over %v, step %d, opcode %d, node %d, args %x, payload of %d, said %d: %v", way, q.unique()/2, q.opcode(), q.node(), q.args, len(q.payload), q.said, err)
			}
		}
		batch = batch[:0]
		if p := r.panics.Swap(nil); p != nil {
			r.t.Fatal(*p)
		}
	}
	for range maxSteps {
		if len(s.b) == 0 {
			break
		}
		q, held := s.step()
		if slices.ContainsFunc(batch, func(o *wireRequest) bool { return q.meets(o) }) {
			send()
		}
		batch = append(batch, q)
		if way == wayCold || !held || len(batch) == wireEntries || !q.plain() {
			send()
		}
	}
	send()
	if got := r.content(r.disk); !bytes.Equal(got, *s.m.disks[wireDisk]) {
		r.t.Fatalf("the disk differs at %d in the end", firstDifference(got, *s.m.disks[wireDisk]))
	}
	r.reset(s.m)
}

// plain says whether a request may share a batch: its answer does not depend on
// what is beside it, unless they meet.
func (q *wireRequest) plain() bool {
	return (q.opcode() == opRead || q.opcode() == opWrite) && len(q.args) >= 24 && int(q.said) == len(q.payload) &&
		u32(q.header[:], 0) == uint32(inHeader+len(q.args)+len(q.payload))
}

// meets says whether two requests of one batch would come in no order: plain ones that
// share a block and are not both reads.
func (q *wireRequest) meets(o *wireRequest) bool {
	if !q.plain() || !o.plain() {
		return true
	}
	if q.opcode() == opRead && o.opcode() == opRead {
		return false
	}
	const b = kvstore.BlockSize
	from, to := u64(q.args, 8)/b, (u64(q.args, 8)+uint64(u32(q.args, 16)))/b
	ofrom, oto := u64(o.args, 8)/b, (u64(o.args, 8)+uint64(u32(o.args, 16)))/b
	return from <= oto && ofrom <= to
}
