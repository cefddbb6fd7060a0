package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
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
	for i := range *t.handles.Load() {
		h := t.handle(uint64(i + 1))
		if h == nil || h.n != n {
			continue
		}
		v, err := t.vols.Open(t.s.ctx, n.name, h.write)
		if err != nil {
			// The volume is there, but another mount was faster to open it.
			return t.refused(n.name, h.write, h.pid, err)
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
	return fuse.OK
}
