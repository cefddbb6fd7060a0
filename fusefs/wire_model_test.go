package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// wireModel is what the file system should be: bytes and names. It reads each
// request from its wire form, by itself.
type wireModel struct {
	uid, gid uint32
	disks    map[string]*[]byte // by name
	byID     map[uint64]*wireNode
	byName   map[string]*wireNode
	handles  map[uint64]*wireHandle
	dirs     map[uint64]bool
}

type wireNode struct {
	id            uint64
	name          string
	pending, gone bool
	lookups       uint64
	opens         int
}

type wireHandle struct {
	n     *wireNode // nil: .stats
	write bool
}

func newWireModel(r *wireRig) *wireModel {
	disk := r.modelDisk
	clear(disk)
	return &wireModel{
		uid: r.s.tree.uid, gid: r.s.tree.gid, disks: map[string]*[]byte{wireDisk: &disk}, byID: map[uint64]*wireNode{},
		byName: map[string]*wireNode{}, handles: map[uint64]*wireHandle{}, dirs: map[uint64]bool{},
	}
}

// argsOf is the length of the fixed arguments per opcode.
var argsOf = map[uint32]int{
	opLookup: 0, opForget: 8, opGetattr: 16, opSetattr: 88, opUnlink: 0, opOpen: 8, opRead: 40, opWrite: 40, opStatfs: 0,
	opRelease: 24, opFsync: 16, opOpendir: 8, opReaddir: 40, opReleasedir: 24, opCreate: 16, opFallocate: 32, opReaddirplus: 40, opLseek: 24,
}

// asGot is the request as its receiver should understand it; ok is false if it is
// too short to be understood.
func (q *wireRequest) asGot(way wireWay) (args, payload []byte, ok bool) {
	args, payload = q.args, q.payload
	if way == wayRings {
		// The kernel's word on the payload counts, within the buffer, and then the header's
		// on the rest.
		n := min(int(q.said), wirePayload)
		if n > len(payload) {
			payload = append(bytes.Clone(payload), make([]byte, n-len(payload))...)
		}
		payload = payload[:n]
		left := int64(binary.NativeEndian.Uint32(q.header[:])) - inHeader - int64(n)
		if left < 0 || left > 128 {
			left = 0
		}
		if int(left) > len(args) {
			args = append(bytes.Clone(args), make([]byte, int(left)-len(args))...)
		}
		args = args[:left]
		if op := q.opcode(); op == opRead || op == opWrite {
			return args, payload, len(args) >= 24
		}
	}
	if want, known := argsOf[q.opcode()]; known && len(args) == want {
		return args, payload, true
	}
	flat := append(bytes.Clone(args), payload...)
	if op := q.opcode(); way == wayDev && (op == opRead || op == opWrite) {
		n := min(len(flat), 40)
		return flat[:n], flat[n:], n >= 24
	}
	want, known := argsOf[q.opcode()]
	if !known || len(flat) < want {
		return nil, nil, false
	}
	return flat[:want], flat[want:], true
}

func u32(b []byte, at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
func u64(b []byte, at int) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

// nameIn is the name in a payload: up to its NUL.
func nameIn(payload []byte) string {
	name, _, _ := bytes.Cut(payload, []byte{0})
	return string(name)
}

// judge says what is wrong with an answer, and does to the model what it means.
func (m *wireModel) judge(q *wireRequest, a wireAnswer, way wireWay) error {
	switch e := syscall.Errno(a.errno); {
	case e == syscall.EAGAIN && way == wayCold && q.opcode() == opInterrupt:
		return nil // go-fuse asks the kernel to come again; package cold does not pass that on
	case a.errno < 0 || a.errno > 133, e == syscall.EINTR, e == syscall.EAGAIN:
		return fmt.Errorf("errno %d", a.errno)
	case a.errno != 0 && len(a.data) > 0:
		return fmt.Errorf("%v with %d bytes", e, len(a.data))
	}
	args, payload, ok := q.asGot(way)
	if !ok {
		if _, known := argsOf[q.opcode()]; known && a.errno == 0 && q.opcode() != opForget {
			return fmt.Errorf("a request that is cut was answered with success")
		}
		return nil
	}
	var want error
	switch q.opcode() {
	case opRead:
		return m.read(args, a, way)
	case opWrite:
		want = m.write(args, payload, a, way)
	case opFallocate:
		want = m.fallocate(args)
	case opLseek:
		return m.lseek(args, a)
	case opSetattr:
		want = m.setattr(q.node(), args)
	case opFsync:
		if m.handles[u64(args, 0)] == nil {
			want = syscall.EBADF
		}
	default:
		return m.judgeName(q, args, payload, a)
	}
	return same(want, a)
}

// same compares an answer with the error that is due, or nil.
func same(want error, a wireAnswer) error {
	if got := syscall.Errno(a.errno); want == nil && a.errno != 0 || want != nil && got != want {
		return fmt.Errorf("answered %d (%v), want %v", a.errno, got, want)
	}
	return nil
}

// bytesOf returns the disk of an open image, nil if it has none.
func (m *wireModel) bytesOf(h *wireHandle) *[]byte {
	if h == nil || h.n == nil || h.n.pending {
		return nil
	}
	return m.disks[h.n.name]
}

func (m *wireModel) read(args []byte, a wireAnswer, way wireWay) error {
	h, off, n := m.handles[u64(args, 0)], u64(args, 8), uint64(u32(args, 16))
	if a.errno == int(syscall.EIO) && (n > wirePayload || len(args) < argsOf[opRead]) {
		return nil // no room for the answer; too short for go-fuse, which serves the rare ones
	}
	if h == nil {
		return same(syscall.EBADF, a)
	}
	if h.n == nil {
		return same(nil, a) // .stats
	}
	var want []byte
	if d := m.bytesOf(h); d != nil && off < uint64(len(*d)) {
		want = (*d)[off:min(off+min(n, wirePayload+512), uint64(len(*d)))]
		if way == wayRings {
			want = want[:min(len(want), wirePayload)]
		}
	}
	if err := same(nil, a); err != nil {
		return err
	}
	if !bytes.Equal(a.data, want) {
		return fmt.Errorf("read of %d bytes at %d: got %d bytes, want %d; the first that differs is %d", n, off, len(a.data), len(want), firstDifference(a.data, want))
	}
	return nil
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func (m *wireModel) write(args, payload []byte, a wireAnswer, way wireWay) error {
	h, off := m.handles[u64(args, 0)], u64(args, 8)
	if e := syscall.Errno(a.errno); len(args) != argsOf[opWrite] && (e == syscall.EIO || e == syscall.EINVAL) {
		return e // see read; what is longer go-fuse takes for data
	}
	misfit := uint64(u32(args, 16)) != uint64(len(payload))
	if misfit && (way != wayCold || h != nil && h.n != nil) {
		return syscall.EINVAL
	}
	if h == nil || h.n == nil {
		return syscall.EBADF
	}
	if len(payload) > 0 {
		d := m.bytesOf(h)
		if d == nil || off > uint64(len(*d)) || uint64(len(payload)) > uint64(len(*d))-off {
			return syscall.ENOSPC
		}
		if a.errno == int(syscall.EROFS) && !m.writable(h.n) {
			return syscall.EROFS
		}
		copy((*d)[off:], payload)
	}
	if a.errno == 0 && (len(a.data) != 8 || u32(a.data, 0) != uint32(len(payload))) {
		return fmt.Errorf("a write of %d bytes was answered %v", len(payload), a.data)
	}
	return nil
}

// writable says whether somebody has a node open for writing: only then the volume
// must be.
func (m *wireModel) writable(n *wireNode) bool {
	for _, h := range m.handles {
		if h.n != nil && h.n.name == n.name && h.write {
			return true
		}
	}
	return n.name == wireDisk
}

func (m *wireModel) fallocate(args []byte) error {
	h, off, n, mode := m.handles[u64(args, 0)], u64(args, 8), u64(args, 16), u32(args, 24)
	if h == nil || h.n == nil {
		return syscall.EBADF
	}
	d := m.bytesOf(h)
	if d == nil {
		return syscall.EOPNOTSUPP
	}
	size := uint64(len(*d))
	outside := off > size || n > size-off
	switch mode {
	case 0, 1:
		if outside {
			return syscall.EOPNOTSUPP
		}
		if n > 0 && !m.writable(h.n) {
			return syscall.EROFS
		}
		return nil
	case 0x10:
		if outside {
			return syscall.EOPNOTSUPP
		}
	case 0x03, 0x11:
	default:
		return syscall.EOPNOTSUPP
	}
	if off >= size {
		return nil
	}
	if !m.writable(h.n) {
		return syscall.EROFS
	}
	clear((*d)[off:min(size, off+min(n, size-off))])
	return nil
}

// lseek: data may be zeros, a hole may not be data.
func (m *wireModel) lseek(args []byte, a wireAnswer) error {
	h, off, whence := m.handles[u64(args, 0)], u64(args, 8), u32(args, 16)
	if h == nil {
		return same(syscall.EBADF, a)
	}
	d := m.bytesOf(h)
	if d == nil || off >= uint64(len(*d)) {
		return same(syscall.ENXIO, a)
	}
	var got uint64
	switch {
	case whence != 3 && whence != 4:
		return same(syscall.EINVAL, a)
	case a.errno == 0 && len(a.data) == 8:
		got = u64(a.data, 0)
	case a.errno == int(syscall.ENXIO) && whence == 3:
		got = uint64(len(*d))
	default:
		return fmt.Errorf("lseek answered %d, %v", a.errno, a.data)
	}
	if got < off || got > uint64(len(*d)) {
		return fmt.Errorf("lseek from %d gave %d", off, got)
	}
	if whence == 3 && len(bytes.Trim((*d)[off:got], "\x00")) > 0 {
		return fmt.Errorf("SEEK_DATA from %d passed data and gave %d", off, got)
	}
	end := min(len(*d), int(got)/kvstore.BlockSize*kvstore.BlockSize+kvstore.BlockSize)
	if whence == 4 && got < uint64(len(*d)) && len(bytes.Trim((*d)[got:end], "\x00")) > 0 {
		return fmt.Errorf("SEEK_HOLE from %d gave %d, where data is", off, got)
	}
	return nil
}

func (m *wireModel) setattr(node uint64, args []byte) error {
	valid, size, mode, uid, gid := u32(args, 0), u64(args, 16), u32(args, 68)&0o7777, u32(args, 76), u32(args, 80)
	n := m.byID[node]
	switch {
	case node == rootID || node == statsID:
		return syscall.EPERM
	case n == nil:
		return syscall.ENOENT
	case valid&1 != 0 && mode != 0o600, valid&2 != 0 && uid != m.uid, valid&4 != 0 && gid != m.gid:
		return syscall.EPERM
	case valid&8 == 0:
		return nil
	}
	d := m.disks[n.name]
	switch {
	case n.pending && n.gone:
		return syscall.ENOENT
	case n.pending && size == 0, !n.pending && size == uint64(len(*d)):
		return nil
	case !n.pending && size < uint64(len(*d)):
		return syscall.EPERM
	case size%kvstore.BlockSize != 0 || size > pool.MaxSize:
		return syscall.EINVAL
	case n.pending:
		n.pending = false
		b := make([]byte, size)
		m.disks[n.name] = &b
		return nil
	}
	*d = append(*d, make([]byte, int(size)-len(*d))...)
	return nil
}

// drop forgets a node that nobody refers to.
func (m *wireModel) drop(n *wireNode) {
	if n.lookups == 0 && n.opens == 0 {
		delete(m.byID, n.id)
		if m.byName[n.name] == n {
			delete(m.byName, n.name)
		}
	}
}

func (m *wireModel) unlink(n *wireNode) {
	n.gone = true
	if m.byName[n.name] == n {
		delete(m.byName, n.name)
	}
	m.drop(n)
}

// found notes that a name was answered with a node id.
func (m *wireModel) found(name string, id uint64) (*wireNode, error) {
	n := m.byName[name]
	switch {
	case n != nil && n.id != id:
		return nil, fmt.Errorf("%q is node %d, was %d", name, id, n.id)
	case n == nil && (id < firstID || m.byID[id] != nil):
		return nil, fmt.Errorf("%q is node %d, which is another one", name, id)
	case n == nil:
		n = &wireNode{id: id, name: name}
		m.byID[id], m.byName[name] = n, n
	}
	n.lookups++
	return n, nil
}

// sizeOf is what stat shows of a node.
func (m *wireModel) sizeOf(n *wireNode) uint64 {
	if d := m.disks[n.name]; d != nil && !n.pending {
		return uint64(len(*d))
	}
	return 0
}

// badName says what a LOOKUP, or a CREATE, of a name that cannot be gets.
func badName(name string, bad syscall.Errno) error {
	switch {
	case len(name) > 64:
		return syscall.ENAMETOOLONG
	case name == "" || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || strings.ContainsRune("._-", rune(name[0])):
		return bad
	}
	for _, c := range []byte(name) {
		if !slices.Contains([]byte("._-"), c) && !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z') {
			return bad
		}
	}
	return nil
}
