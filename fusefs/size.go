package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// SetAttr changes the size. Times are accepted and forgotten; owner and mode are
// the mount's.
func (t *tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.other()()
	if in.NodeId == rootID || in.NodeId == statsID {
		return fuse.EPERM
	}
	n := t.node(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		var now fuse.Attr
		t.attr(n, &now)
		mode, changesMode := in.GetMode()
		uid, changesUID := in.GetUID()
		gid, changesGID := in.GetGID()
		if changesMode && mode != now.Mode&0o7777 || changesUID && uid != now.Uid || changesGID && gid != now.Gid {
			return fuse.EPERM
		}
	}
	if size, ok := in.GetSize(); ok {
		if st := t.resize(n, size); !st.Ok() {
			return st
		}
	}
	out.SetTimeout(t.attr(n, &out.Attr))
	return fuse.OK
}

// resize gives a pending image its size, which makes it a volume, or makes a
// volume larger.
func (t *tree) resize(n *node, size uint64) fuse.Status {
	if t.s.opt.ReadOnly {
		return fuse.EROFS
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	if h, err := t.fill(n); err != nil {
		return t.refused(n.name, h.write, h.pid, err)
	}
	if st := t.lookAgain(n); !st.Ok() {
		return st
	}
	t.mu.Lock()
	pending, vol, have := n.pending, n.vol, uint64(n.info.Size)
	removed := pending && n.gone
	t.mu.Unlock()
	if vol != nil {
		have = uint64(vol.Size())
	}
	switch {
	case removed: // by rm, and is open still: its name may be another image's by now
		return fuse.ENOENT
	case pending && size == 0, !pending && size == have:
		return fuse.OK
	case !pending && size < have:
		t.s.opt.Log("%s is not made smaller from %d to %d bytes: that loses data; use 'kvbfs volume resize', and conv=notrunc with dd", n.name, have, size)
		return fuse.EPERM
	case size%kvstore.BlockSize != 0 || size > 1<<62:
		t.s.opt.Log("%s cannot have %d bytes: a volume's size is a multiple of %d", n.name, size, kvstore.BlockSize)
		return fuse.EINVAL
	}
	if pending {
		return t.realise(n, int64(size))
	}
	if err := t.vols.Resize(t.s.ctx, n.name, int64(size), false); err != nil {
		return t.failed("resize", n.name, err)
	}
	t.cat.forget()
	t.mu.Lock()
	n.info.Size = int64(size)
	t.mu.Unlock()
	return fuse.OK
}

// lookAgain finds out which size a volume has that is not open here: what is known of
// it may be older than a change elsewhere.
func (t *tree) lookAgain(n *node) fuse.Status {
	t.mu.Lock()
	known := n.pending || n.vol != nil
	t.mu.Unlock()
	if known {
		return fuse.OK
	}
	t.cat.forget()
	return t.refresh(n)
}

// realise makes the volume of a pending image and opens it for the handles that
// the image has. n.changing is held, so no open of it is under way.
func (t *tree) realise(n *node, size int64) fuse.Status {
	if err := t.vols.Create(t.s.ctx, n.name, size); err != nil {
		return t.failed("create", n.name, err)
	}
	t.cat.forget()
	t.mu.Lock()
	n.pending = false
	n.info = volume.Info{}
	n.info.Name, n.info.Size = n.name, size
	t.mu.Unlock()
	if info, ok, err := t.cat.find(t.s.ctx, n.name); err == nil && ok {
		t.mu.Lock()
		n.info = info
		t.mu.Unlock()
	}
	if h, err := t.fill(n); err != nil {
		// The volume is there, but another mount was faster to open it.
		return t.refused(n.name, h.write, h.pid, err)
	}
	return fuse.OK
}

// fill opens the volume of an image for those of its handles that have none: they were
// opened while the image was pending. n.changing is held. With an error comes the handle
// for which it could not be opened; it is tried again when the handle is used.
func (t *tree) fill(n *node) (*handle, error) {
	t.mu.Lock()
	pending, gone := n.pending, n.gone
	t.mu.Unlock()
	if pending {
		return nil, nil
	}
	for i := range *t.handles.Load() {
		h := t.handle(uint64(i + 1))
		if h == nil || h.n != n || h.vol.Load() != nil {
			continue
		}
		if gone { // its name may be another volume's by now
			return h, pool.ErrNoVolume
		}
		v, err := t.vols.Open(t.s.ctx, n.name, h.write)
		if err != nil {
			return h, err
		}
		t.mu.Lock()
		if t.handle(uint64(i+1)) == h {
			h.vol.Store(v)
			t.hold(n, v)
		} else {
			t.s.closer.add(v) // released meanwhile
		}
		t.mu.Unlock()
	}
	return nil, nil
}

// volume returns the volume of an open image, nil while it is pending.
func (t *tree) volume(h *handle) (*volume.Volume, fuse.Status) {
	if v := h.vol.Load(); v != nil || h.n == nil {
		return v, fuse.OK
	}
	t.mu.Lock()
	pending := h.n.pending
	t.mu.Unlock()
	if pending {
		return nil, fuse.OK
	}
	h.n.changing.Lock()
	defer h.n.changing.Unlock()
	_, err := t.fill(h.n)
	if v := h.vol.Load(); v != nil {
		return v, fuse.OK
	}
	if err != nil {
		t.quiet.log("%s was created, and cannot be opened: %v", h.n.name, err)
	}
	return nil, fuse.EIO
}
