package fusefs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// openFlags of every image. Direct I/O: the kernel keeps no pages of ours, so
// nothing is cached twice and what is answered is stored. Parallel direct writes:
// without it each write of a file waits for the one before.
// No flush: a close(2) has nothing to ask us, see Flush.
const openFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH

func wantsWrite(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

// Open opens an image or .stats. It may take as long as the lease of the volume
// takes; other requests go on meanwhile.
func (t *tree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer t.other()()
	write := wantsWrite(in.Flags)
	if in.NodeId == statsID {
		if write {
			return fuse.EACCES
		}
		h := &handle{pid: processOf(in.Pid), data: t.s.statsContent()}
		t.mu.Lock()
		defer t.mu.Unlock()
		out.Fh, out.OpenFlags = put(&t.handles, h), fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	n := t.node(in.NodeId)
	switch {
	case n == nil:
		return fuse.ENOENT
	case write && t.s.opt.ReadOnly:
		return fuse.EROFS
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	fh, st := t.open(n, write, in.Pid)
	out.Fh, out.OpenFlags = fh, openFlags
	return st
}

// open makes a handle. n.changing is held.
func (t *tree) open(n *node, write bool, pid uint32) (fh uint64, st fuse.Status) {
	h := &handle{n: n, write: write, pid: processOf(pid)}
	t.mu.Lock()
	pending, removed := n.pending, n.pending && n.gone
	t.mu.Unlock()
	if removed {
		return 0, fuse.ENOENT
	}
	if !pending {
		v, err := t.vols.Open(t.s.ctx, n.name, write)
		if err != nil {
			return 0, t.refused(n.name, write, pid, err)
		}
		h.vol.Store(v)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.opens++
	if v := h.vol.Load(); v != nil {
		t.hold(n, v)
	}
	return put(&t.handles, h), fuse.OK
}

// hold notes one more reference of an open volume. t.mu is held.
func (t *tree) hold(n *node, v *volume.Volume) {
	n.vol = v
	n.volRefs++
	v.SetTimeout(t.timeout(n.name))
	t.s.deepen(t.openVolumes())
}

// openVolumes counts them. t.mu is held.
func (t *tree) openVolumes() (count int) {
	for _, n := range t.byID {
		if n.vol != nil {
			count++
		}
	}
	return count
}

// deepen raises the kernel's queue depth when more volumes are open than the
// mount was made for. Without the right to (an ordinary user) the depth stays.
func (s *Server) deepen(volumes int) {
	want := int32(min(volumes*backgroundPerVolume, maxBackground))
	if have := s.background.Load(); want <= have || s.opt.MaxBackground > 0 || !s.background.CompareAndSwap(have, want) {
		return
	}
	go func() {
		dir := s.conn.sysfs()
		if dir == "" {
			return
		}
		// The kernel throttles at three quarters, as it does by default.
		_ = os.WriteFile(dir+"/max_background", fmt.Append(nil, want), 0)
		_ = os.WriteFile(dir+"/congestion_threshold", fmt.Append(nil, want*3/4), 0)
	}()
}

// refused logs why an open failed, in a way that says what to do, and returns
// its status.
func (t *tree) refused(name string, write bool, pid uint32, err error) fuse.Status {
	how := "reading"
	if write {
		how = "writing"
	}
	if errors.Is(err, pool.ErrHeld) || errors.Is(err, volume.ErrInUse) {
		// The error's text names the holder.
		t.s.opt.Log("open %s for %s refused (pid %d): %v", name, how, pid, err)
		return fuse.EBUSY
	}
	if errors.Is(err, pool.ErrNoVolume) {
		t.cat.forget() // it was there when it was looked up
		t.s.opt.Log("open %s for %s refused (pid %d): %v", name, how, pid, err)
	}
	return t.failed("open for "+how, name, err)
}

// Create makes a pending image, or opens what somebody made in between.
func (t *tree) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer t.other()()
	switch {
	case in.NodeId != rootID:
		return fuse.ENOTDIR
	case t.s.opt.ReadOnly:
		return fuse.EROFS
	case len(name) > maxName:
		return enametoolong
	case name == statsName:
		return eexist
	}
	if err := pool.CheckName(name); err != nil {
		return t.failed("create", name, err)
	}
	if !t.cat.serves(name) {
		t.s.opt.Log("create %s refused: this mount serves only %s", name, strings.Join(t.s.opt.Only, ", "))
		return fuse.EPERM
	}
	info, exists, err := t.cat.find(t.s.ctx, name)
	if err != nil {
		return t.failed("create", name, err)
	}
	var n *node
	switch {
	case exists && in.Flags&syscall.O_EXCL != 0:
		return eexist
	case exists:
		n = t.enter(info, true)
	default:
		n = t.enterPending(name)
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	fh, st := t.open(n, wantsWrite(in.Flags), in.Pid)
	if !st.Ok() {
		t.Forget(n.id, 1) // the kernel does not take the reference of a failed CREATE
		return st
	}
	t.entry(n, &out.EntryOut)
	out.Fh, out.OpenFlags = fh, openFlags
	return fuse.OK
}

// enterPending returns the pending node of a name, with one reference more.
func (t *tree) enterPending(name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byName[name]
	if n != nil && !n.pending && n.opens == 0 {
		t.unlink(n) // of a volume that was removed
		n = nil
	}
	if n == nil {
		n = t.add(name)
		n.pending = true
	}
	n.lookups++
	return n
}

// Flush is sent at each close(2), also at those that the kernel does for a process
// that executes another program or ends. It has nothing to do: what was answered is
// stored, and what is promised about stability is FSYNC's. So the kernel is told not
// to ask again, or every close would wait in the queue behind requests to a silent
// server. FOPEN_NOFLUSH says it for each open where the kernel knows it (5.16).
func (t *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Release drops a handle. The volume is closed in the background, because that
// may have to wait for a store; Server.Close waits for it.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := take(&t.handles, in.Fh)
	if h == nil || h.n == nil {
		return
	}
	n := h.n
	n.opens--
	if v := h.vol.Swap(nil); v != nil {
		n.volRefs--
		if n.volRefs == 0 {
			n.vol = nil
			// Its size may have changed while it was open.
			t.cat.forget()
		}
		t.s.closer.add(v)
	}
	if n.pending && n.opens == 0 {
		t.s.opt.Log("%s was created without a size and is gone: use 'truncate -s SIZE' or 'kvbfs volume create'", n.name)
		t.unlink(n)
		return
	}
	if n.gone {
		t.drop(n)
	}
}
