package fusefs

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/fusefs/devfuse"
	"github.com/kvbfs/kvbfs/fusefs/uring"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Opcodes of uapi/linux/fuse.h that the fuzzer knows.
const (
	opLookup      = 1
	opGetattr     = 3
	opSetattr     = 4
	opUnlink      = 10
	opOpen        = 14
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opCreate      = 35
	opNotifyReply = 41
	opFallocate   = 43
	opReaddirplus = 44
	opLseek       = 46
)

// wirePayload is the size of a request's data buffer, as in a mount.
const wirePayload = maxRequest

const inHeader = uring.InHeaderSize

// wireRequest is a request as it travels.
type wireRequest struct {
	header        [inHeader]byte
	args, payload []byte
	said          uint32 // the payload's length as the ring's header tells it
}

func (q *wireRequest) opcode() uint32 { return binary.NativeEndian.Uint32(q.header[4:]) }
func (q *wireRequest) unique() uint64 { return binary.NativeEndian.Uint64(q.header[8:]) }
func (q *wireRequest) node() uint64   { return binary.NativeEndian.Uint64(q.header[16:]) }

// flat is the request as one piece, as it is read from /dev/fuse; the memory of into
// is used again.
func (q *wireRequest) flat(into []byte) []byte {
	return append(append(append(into[:0], q.header[:]...), q.args...), q.payload...)
}

// wireWay is how a request comes in.
type wireWay int

const (
	wayCold  wireWay = iota // go-fuse's decoder alone
	wayRings                // package uring
	wayDev                  // package devfuse
	wireWays
)

func (w wireWay) String() string { return [...]string{"go-fuse", "rings", "/dev/fuse"}[w] }

// wireAnswer is what came back.
type wireAnswer struct {
	errno int
	data  []byte
}

// wireRig is the file system with both transports' decoders, and no kernel.
type wireRig struct {
	t      testing.TB
	s      *Server
	vols   *volume.Set
	disk   *volume.Volume // held open, so that only the requests decide what is cheap
	w      *volume.Worker
	hot    *inplace
	off    *uring.Offline
	dev    *devfuse.Offline
	out    []byte
	panics atomic.Pointer[string]

	// Memory that scripts have in turn: for payloads, for one request in one piece, for the
	// model's disk, for what a volume holds.
	room, piece, modelDisk, held []byte
}

const (
	wireDisk     = "disk"
	wireDiskSize = 16 * kvstore.BlockSize
	wireEntries  = 8
)

func newWireRig(t testing.TB) *wireRig {
	ctx := context.Background()
	r := &wireRig{t: t, out: make([]byte, replySize), room: make([]byte, maxSteps*maxWireData), modelDisk: make([]byte, wireDiskSize)}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st := mem.New(mem.Config{})
	run := t.TempDir()
	p, err := pool.Open(ctx, st, pool.Options{URL: "mem:", StateDir: t.TempDir(), RuntimeDir: run})
	check(err)
	r.vols = volume.New(p, st, volume.Options{RuntimeDir: run, Lease: pool.LeaseOptions{TTL: time.Hour, Wait: -1}})
	check(r.vols.Create(ctx, wireDisk, wireDiskSize))
	r.disk, err = r.vols.Open(ctx, wireDisk, true)
	check(err)
	r.w, err = r.vols.Worker(ctx)
	check(err)

	s := &Server{opt: Options{Name: "mem:", Log: r.log, Usage: st.Usage}, done: make(chan struct{}), conn: &connection{dup: -1}}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.disp = newDispatcher(s.ctx, func(ctx context.Context) (worker, error) { return r.vols.Worker(ctx) }, 1, r.log)
	s.tree = newTree(s, r.vols)
	s.closer.init(r.log)
	s.background.Store(maxBackground)
	r.s = s
	s.cold = newCold(s.tree, s.mountOptions(minBackground), r.log)
	check(r.hello())
	r.off, err = uring.NewOffline(wireEntries, wirePayload)
	check(err)
	r.dev, err = devfuse.NewOffline(wirePayload)
	check(err)
	r.hot = newInplace(s, 1)
	t.Cleanup(func() {
		err := s.closer.wait(ctx)
		s.cancel()
		for _, e := range []error{s.disp.close(), r.w.Close(), r.disk.Close(ctx), r.vols.Close(ctx), p.Close(), st.Close(), r.off.Close(), r.dev.Close()} {
			if err == nil {
				err = e
			}
		}
		if err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return r
}

// hello is the kernel's INIT.
func (r *wireRig) hello() error {
	in := make([]byte, inHeader+64)
	copy(in, put32(nil, uint32(len(in)), opInit))
	copy(in[8:], put64(nil, 2))
	copy(in[inHeader:], put32(nil, 7, 40, 0, fuse.CAP_ASYNC_DIO))
	_, err := r.s.cold.init(in)
	return err
}

// log keeps panics, which handlers contain.
func (r *wireRig) log(format string, args ...any) {
	if strings.HasPrefix(format, "panic") {
		r.panics.Store(new(fmt.Sprintf(format, args...)))
	}
}

// overCold sends a request by go-fuse's decoder alone.
func (r *wireRig) overCold(q *wireRequest) (wireAnswer, error) {
	clear(r.out[:16])
	r.piece = q.flat(r.piece)
	n, st := r.s.cold.ps.HandleRequest([][]byte{r.piece}, [][]byte{r.out})
	switch {
	case !st.Ok():
		return wireAnswer{errno: int(st)}, nil
	case n == 0: // FORGET
		return wireAnswer{}, nil
	case n < 16:
		return wireAnswer{}, fmt.Errorf("an answer of %d bytes", n)
	}
	errno := -int(int32(binary.NativeEndian.Uint32(r.out[4:])))
	if said, unique := binary.NativeEndian.Uint32(r.out), binary.NativeEndian.Uint64(r.out[8:]); int(said) != n || unique != q.unique() {
		return wireAnswer{}, fmt.Errorf("an answer of %d bytes says %d, to %d instead of %d", n, said, unique, q.unique())
	}
	return wireAnswer{errno, r.out[16:n]}, nil
}

// overRings sends requests as one batch.
func (r *wireRig) overRings(batch []*wireRequest) ([]wireAnswer, error) {
	entries := make([]*uring.Entry, len(batch))
	for i, q := range batch {
		entries[i] = r.off.Request(i, q.header, q.args, q.payload, q.said)
	}
	ringHandler{r.hot}.Batch(0, entries)
	if err := r.off.Wait(len(batch)); err != nil {
		return nil, err
	}
	answers := make([]wireAnswer, len(batch))
	for i, q := range batch {
		unique, errno, data, err := r.off.Answer(i)
		if err == nil && unique != q.unique() {
			err = fmt.Errorf("answer to %d instead of %d", unique, q.unique())
		}
		if err != nil {
			return nil, err
		}
		answers[i] = wireAnswer{errno, data}
	}
	return answers, nil
}

// overDev sends requests as one batch of /dev/fuse.
func (r *wireRig) overDev(batch []*wireRequest) ([]wireAnswer, error) {
	entries := make([]*devfuse.Entry, len(batch))
	for i, q := range batch {
		var err error
		r.piece = q.flat(r.piece)
		if entries[i], err = r.dev.Request(r.piece); err != nil {
			return nil, err
		}
	}
	readerHandler{r.hot}.Batch(0, entries)
	replies, err := r.dev.Answers()
	if err != nil {
		return nil, err
	}
	answers := make([]wireAnswer, len(batch))
	for i, q := range batch {
		at := slices.IndexFunc(replies, func(b []byte) bool { return binary.NativeEndian.Uint64(b[8:]) == q.unique() })
		if at < 0 {
			if op := q.opcode(); op != opForget && op != opBatchForget && op != opInterrupt {
				return nil, fmt.Errorf("opcode %d got no answer", op)
			}
			continue
		}
		b := replies[at]
		replies = slices.Delete(replies, at, at+1)
		answers[i] = wireAnswer{-int(int32(binary.NativeEndian.Uint32(b[4:]))), b[16:]}
	}
	if len(replies) > 0 {
		return nil, fmt.Errorf("%d answers that nobody asked for, or twice", len(replies))
	}
	return answers, nil
}

// send takes requests the way that is named; all but go-fuse's alone take several.
func (r *wireRig) send(way wireWay, batch []*wireRequest) ([]wireAnswer, error) {
	switch way {
	case wayRings:
		return r.overRings(batch)
	case wayDev:
		return r.overDev(batch)
	}
	a, err := r.overCold(batch[0])
	return []wireAnswer{a}, err
}

// content reads the whole of a volume past the file system. It is valid until the next
// call.
func (r *wireRig) content(v *volume.Volume) []byte {
	n := int(v.Size())
	r.held = slices.Grow(r.held[:0], n)[:n]
	r.do(volume.Request{Kind: volume.Read, Vol: v, Data: r.held})
	return r.held
}

func (r *wireRig) do(q volume.Request) {
	r.t.Helper()
	if r.w.Do(context.Background(), []*volume.Request{&q}); q.Err != nil {
		r.t.Fatal(q.Err)
	}
}

// reset brings back the empty disk, and takes away what a script has made.
func (r *wireRig) reset(m *wireModel) {
	ctx := context.Background()
	for fh := range m.handles {
		r.s.tree.Release(nil, &fuse.ReleaseIn{Fh: fh})
	}
	for fh := range m.dirs {
		r.s.tree.ReleaseDir(&fuse.ReleaseIn{Fh: fh})
	}
	for id, n := range m.byID {
		r.s.tree.Forget(id, n.lookups)
	}
	must := func(err error) {
		r.t.Helper()
		if err != nil {
			r.t.Fatal(err)
		}
	}
	must(r.s.closer.wait(ctx))
	for name := range m.disks {
		if name != wireDisk {
			must(r.vols.Remove(ctx, name, nil))
		}
	}
	if n := r.disk.Size(); n != wireDiskSize {
		must(r.disk.Close(ctx))
		must(r.vols.Remove(ctx, wireDisk, nil))
		must(r.vols.Create(ctx, wireDisk, wireDiskSize))
		var err error
		r.disk, err = r.vols.Open(ctx, wireDisk, true)
		must(err)
	} else {
		r.do(volume.Request{Kind: volume.Discard, Vol: r.disk, N: wireDiskSize})
	}
	r.s.tree.cat.forget()
	t := r.s.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byID) != 0 || len(t.byName) != 0 {
		r.t.Fatalf("%d nodes and %d names are left", len(t.byID), len(t.byName))
	}
}
