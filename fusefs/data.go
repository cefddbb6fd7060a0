package fusefs

import (
	"errors"
	"fmt"
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Read answers with the whole range, clipped at the end of the volume, or an
// error: the kernel fills a short reply with zeros and tells nobody.
func (t *tree) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := t.handle(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	if h.n == nil {
		off := min(in.Offset, uint64(len(h.data)))
		n := copy(buf, h.data[off:])
		return fuse.ReadResultData(buf[:n]), fuse.OK
	}
	v, st := t.volume(h)
	if v == nil { // pending: empty
		return fuse.ReadResultData(nil), st
	}
	size := v.Size()
	if in.Offset >= uint64(size) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	n := min(int64(len(buf)), size-int64(in.Offset))
	if err := t.s.disp.data(volume.Read, v, int64(in.Offset), buf[:n], in.Fh); err != nil {
		return nil, t.ioFailed("read", h, int64(in.Offset), n, err)
	}
	if n == int64(len(buf)) {
		return nil, fuse.OK // go-fuse sends buf whole; a result would be an allocation
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Writev is what go-fuse tries first. It has one piece unless the request came
// over virtio.
func (t *tree) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if len(data) == 1 {
		return t.Write(cancel, in, data[0])
	}
	return 0, fuse.ENOSYS
}

// Write writes all of data or fails.
func (t *tree) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := t.handle(in.Fh)
	if h == nil || h.n == nil {
		return 0, fuse.EBADF
	}
	if uint64(in.Size) != uint64(len(data)) {
		return 0, fuse.EINVAL // not from a kernel
	}
	if len(data) == 0 {
		return 0, fuse.OK
	}
	v, st := t.volume(h)
	if !st.Ok() {
		return 0, st
	}
	if v == nil {
		t.quiet.log("write to %s refused: it has no size yet; use 'truncate -s SIZE' first", h.n.name)
		return 0, enospc
	}
	size := v.Size()
	if in.Offset > uint64(size) || int64(len(data)) > size-int64(in.Offset) {
		t.quiet.log("write to %s refused: %d bytes at %d end beyond its size of %d bytes", h.n.name, len(data), in.Offset, size)
		return 0, enospc
	}
	if err := t.s.disp.data(volume.Write, v, int64(in.Offset), data, in.Fh); err != nil {
		return 0, t.ioFailed("write", h, int64(in.Offset), int64(len(data)), err)
	}
	return uint32(len(data)), fuse.OK
}

// Fsync is answered truthfully and always: one ENOSYS would make the kernel
// answer 0 for ever. A handle for reading flushes too, as fsync(2) covers what
// others wrote to the file.
func (t *tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := t.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	v, st := t.volume(h)
	if v == nil || !v.Writable() { // nothing that could be unstable
		return st
	}
	if err := t.s.disp.do(&t.s.disp.slow, volume.Flush, v, 0, 0, nil); err != nil {
		return t.ioFailed("flush", h, 0, 0, err)
	}
	return fuse.OK
}

// Modes of fallocate(2) that mean something here.
const (
	modePlain    = 0
	modeKeep     = unix.FALLOC_FL_KEEP_SIZE
	modePunch    = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	modeZero     = unix.FALLOC_FL_ZERO_RANGE
	modeZeroKeep = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// Fallocate discards and zeroes. Loop devices send both, and give up discarding
// for good after one EOPNOTSUPP. Plain allocation provisions: later writes of the
// range do not run out of space, as fallocate(2) promises. Where the store cannot
// promise it the answer is EOPNOTSUPP, and volumes do not grow by it either.
func (t *tree) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := t.handle(in.Fh)
	if h == nil || h.n == nil {
		return fuse.EBADF
	}
	v, st := t.volume(h)
	if !st.Ok() {
		return st
	}
	if v == nil {
		return eopnotsupp
	}
	size := uint64(v.Size())
	inside := in.Offset <= size && in.Length <= size-in.Offset
	kind := volume.Zero
	switch in.Mode {
	case modePlain, modeKeep:
		if !inside {
			return eopnotsupp
		}
		return t.provision(cancel, h, v, int64(in.Offset), int64(in.Length))
	case modePunch:
		kind = volume.Discard
	case modeZeroKeep:
	case modeZero:
		if !inside {
			return eopnotsupp
		}
	default:
		return eopnotsupp
	}
	if in.Offset >= size {
		return fuse.OK // beyond the end: reads as nothing already
	}
	n := int64(min(in.Length, size-in.Offset))
	if err := t.s.disp.do(&t.s.disp.slow, kind, v, int64(in.Offset), n, nil); err != nil {
		return t.ioFailed("fallocate", h, int64(in.Offset), n, err)
	}
	return fuse.OK
}

// provisionPiece is how much of a volume is provisioned in one request: some
// milliseconds of a lane's time, so that flushes and other volumes come between.
const provisionPiece = 4 << 20

// provision serves a plain fallocate. It may be long, and a user may interrupt it:
// EINTR is given here, and only here, because loop devices never ask for it.
func (t *tree) provision(cancel <-chan struct{}, h *handle, v *volume.Volume, off, length int64) fuse.Status {
	for end := off + length; off < end; {
		select {
		case <-cancel:
			return fuse.EINTR
		default:
		}
		n := min(end-off, provisionPiece-off%provisionPiece)
		err := t.s.disp.do(&t.s.disp.slow, volume.Provision, v, off, n, nil)
		if errors.Is(err, kvstore.ErrUnsupported) {
			return eopnotsupp
		}
		if err != nil {
			return t.ioFailed("fallocate", h, off, n, err)
		}
		off += n
	}
	return fuse.OK
}

// Lseek finds data and holes; the kernel does the other kinds itself.
func (t *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	defer t.other()()
	h := t.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	v, st := t.volume(h)
	if !st.Ok() {
		return st
	}
	if v == nil {
		return enxio
	}
	if int64(in.Offset) < 0 || int64(in.Offset) >= v.Size() {
		return enxio
	}
	var off int64
	var err error
	switch in.Whence {
	case unix.SEEK_DATA:
		off, err = v.SeekData(t.s.ctx, int64(in.Offset))
	case unix.SEEK_HOLE:
		off, err = v.SeekHole(t.s.ctx, int64(in.Offset))
	default:
		return fuse.EINVAL
	}
	if errors.Is(err, volume.ErrOutside) || errors.Is(err, io.EOF) {
		return enxio
	}
	if err != nil {
		return t.ioFailed("seek", h, int64(in.Offset), 0, err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// ioFailed logs a data request that failed and returns its status.
func (t *tree) ioFailed(what string, h *handle, off, n int64, err error) fuse.Status {
	return t.failed(what, fmt.Sprintf("%s (%d bytes at %d)", h.n.name, n, off), err)
}

// failed logs what failed, within limits, since errno says so little, and
// returns its status.
func (t *tree) failed(what, on string, err error) fuse.Status {
	st := statusOf(err)
	if st != fuse.ENOENT {
		t.quiet.log("%s %s: %v", what, on, err)
	}
	return st
}

// other counts a request that is not data, and shows it to Status while it
// lasts. Use: defer t.other()().
func (t *tree) other() func() {
	t.others.Add(1)
	slot := t.s.disp.flying.begin()
	return func() { t.s.disp.flying.end(slot) }
}
