package fusefs

import (
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// How long the kernel may keep what it was told. Names and sizes of volumes
// change seldom, and Resized tells the kernel; volumes made or removed by other
// mounts are seen this much later at most. Pending images are never kept.
const (
	entryValid = time.Second
	attrValid  = time.Second
)

// allocAge is how long the allocation of a volume that is not open here is
// believed: to find it out may mean to read its whole map.
const allocAge = 5 * time.Second

// maxName is the length of the longest volume name in bytes.
const maxName = 64

// Lookup answers which node a name is.
func (t *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer t.other()()
	switch {
	case h.NodeId != rootID:
		return fuse.ENOTDIR
	case name == statsName:
		out.NodeId = statsID
		t.statsAttr(&out.Attr, 0)
		return fuse.OK
	case len(name) > maxName:
		return enametoolong
	case pool.CheckName(name) != nil || !t.cat.serves(name):
		return fuse.ENOENT
	}
	if t.lookupPending(name, out) {
		return fuse.OK
	}
	info, ok, err := t.cat.find(t.s.ctx, name)
	switch {
	case ok:
		t.entry(t.enter(info, true), out)
		return fuse.OK
	case err != nil:
		return t.failed("look up", name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byName[name]; n != nil && !n.pending {
		t.unlink(n) // it was removed
	}
	return fuse.ENOENT
}

// lookupPending finds a pending image, or an image that is open: neither needs
// the store, so an open disk stays reachable while the store is not.
func (t *tree) lookupPending(name string, out *fuse.EntryOut) bool {
	t.mu.Lock()
	n := t.byName[name]
	if n == nil || !n.pending && n.vol == nil {
		t.mu.Unlock()
		return false
	}
	n.lookups++
	t.mu.Unlock()
	t.entry(n, out)
	return true
}

// entry fills in the answer of LOOKUP and of its relatives.
func (t *tree) entry(n *node, out *fuse.EntryOut) {
	out.NodeId = n.id
	out.Generation = 1
	if keep := t.attr(n, &out.Attr); keep > 0 {
		out.SetAttrTimeout(keep)
		out.SetEntryTimeout(entryValid)
	}
}

// attr fills in a node's attributes from what is at hand, and returns how long
// they are good for: 0 if GETATTR should find out more.
func (t *tree) attr(n *node, out *fuse.Attr) time.Duration {
	t.mu.Lock()
	vol, info, pending, ino := n.vol, n.info, n.pending, n.ino()
	if vol == nil && info.Allocated < 0 && time.Since(n.allocAt) < allocAge {
		info.Allocated = n.allocated
	}
	t.mu.Unlock()

	size, allocated, keep := info.Size, info.Allocated, attrValid
	switch {
	case vol != nil:
		size, allocated = vol.Size(), vol.Allocated()
	case pending:
		size, allocated, keep = 0, 0, 0
	case allocated < 0:
		allocated, keep = 0, 0
	}
	made := info.Created
	if made.IsZero() {
		made = t.born
	}
	mode := uint32(0o600)
	if t.s.opt.ReadOnly {
		mode = 0o400
	}
	*out = fuse.Attr{
		Ino: ino, Size: uint64(size), Blocks: uint64(allocated+511) / 512, Mode: syscall.S_IFREG | mode,
		Nlink: 1, Owner: fuse.Owner{Uid: t.uid, Gid: t.gid}, Blksize: kvstore.BlockSize,
	}
	out.SetTimes(&made, &made, &made)
	return keep
}

func (t *tree) rootAttr(out *fuse.Attr) {
	mode := uint32(0o700)
	if t.s.opt.ReadOnly {
		mode = 0o500
	}
	*out = fuse.Attr{
		Ino: rootID, Mode: syscall.S_IFDIR | mode, Nlink: 2,
		Owner: fuse.Owner{Uid: t.uid, Gid: t.gid}, Blksize: kvstore.BlockSize,
	}
	out.SetTimes(&t.born, &t.born, &t.born)
}

func (t *tree) statsAttr(out *fuse.Attr, size int) {
	*out = fuse.Attr{
		Ino: statsID, Size: uint64(size), Mode: syscall.S_IFREG | 0o400, Nlink: 1,
		Owner: fuse.Owner{Uid: t.uid, Gid: t.gid}, Blksize: kvstore.BlockSize,
	}
	now := time.Now()
	out.SetTimes(&now, &now, &now)
}

// GetAttr answers stat.
func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer t.other()()
	switch in.NodeId {
	case rootID:
		t.rootAttr(&out.Attr)
		out.SetTimeout(attrValid)
		return fuse.OK
	case statsID:
		size := 0
		if h := t.handle(in.Fh()); in.Flags()&fuse.FUSE_GETATTR_FH != 0 && h != nil {
			size = len(h.data)
		}
		t.statsAttr(&out.Attr, size)
		return fuse.OK
	}
	n := t.node(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	if st := t.refresh(n); !st.Ok() {
		return st
	}
	out.SetTimeout(t.attr(n, &out.Attr))
	return fuse.OK
}

// refresh brings up to date what is known of a volume that is not open here.
func (t *tree) refresh(n *node) fuse.Status {
	t.mu.Lock()
	done := n.pending || n.vol != nil || n.gone && n.opens > 0
	t.mu.Unlock()
	if done {
		return fuse.OK
	}
	info, ok, err := t.cat.find(t.s.ctx, n.name)
	if err != nil {
		return t.failed("look at", n.name, err)
	}
	if !ok || t.enter(info, false) != n {
		t.quiet.log("%s was removed, or removed and made anew, since it was looked up", n.name)
		return fuse.ENOENT
	}
	t.mu.Lock()
	known := info.Allocated >= 0 || time.Since(n.allocAt) < allocAge
	t.mu.Unlock()
	if known {
		return fuse.OK
	}
	// An error is no reason to fail stat: the size is right, the blocks are 0.
	if exact, err := t.vols.Info(t.s.ctx, n.name); err == nil && exact.Allocated >= 0 {
		t.mu.Lock()
		n.allocated, n.allocAt = exact.Allocated, time.Now()
		t.mu.Unlock()
	}
	return fuse.OK
}

// dirHandle is an open of the root: the list as it was when reading began.
type dirHandle struct {
	mu    sync.Mutex // guards infos
	infos []volume.Info
}

// OpenDir opens the root.
func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer t.other()()
	if in.NodeId != rootID {
		return fuse.ENOTDIR
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out.Fh = put(&t.dirs, &dirHandle{})
	return fuse.OK
}

// ReleaseDir closes it.
func (t *tree) ReleaseDir(in *fuse.ReleaseIn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	take(&t.dirs, in.Fh)
}

// ReadDir lists names.
func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, func(e fuse.DirEntry, _ *volume.Info) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists names with their attributes, as if each had been looked up.
func (t *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var now []volume.Info // in place of a list that may be old by now
	if in.Offset != 0 {
		now, _ = t.cat.list(t.s.ctx, listAge) // without it the kernel looks names up
	}
	return t.readDir(in, func(e fuse.DirEntry, info *volume.Info) bool {
		entry := out.AddDirLookupEntry(e)
		switch {
		case entry == nil:
			return false
		case info != nil:
			if in.Offset != 0 {
				i := slices.IndexFunc(now, func(i volume.Info) bool { return i.Name == info.Name })
				if i < 0 {
					return true
				}
				info = &now[i]
			}
			if n := t.enterListed(*info); n != nil {
				t.entry(n, entry)
			}
		case e.Name == statsName:
			entry.NodeId = statsID
			t.statsAttr(&entry.Attr, 0)
		}
		// "." and ".." have node id 0, which says nothing, and the kernel does not look
		// them up.
		return true
	})
}

// readDir gives add the entries from in.Offset on, until one does not fit.
func (t *tree) readDir(in *fuse.ReadIn, add func(e fuse.DirEntry, info *volume.Info) bool) fuse.Status {
	defer t.other()()
	dirs := *t.dirs.Load()
	if in.Fh == 0 || in.Fh > uint64(len(dirs)) || dirs[in.Fh-1] == nil {
		return fuse.EBADF
	}
	d := dirs[in.Fh-1]
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset == 0 {
		infos, err := t.cat.list(t.s.ctx, 0)
		if err != nil {
			return t.failed("list volumes", t.s.opt.Name, err)
		}
		d.infos = infos
	}
	fixed := []fuse.DirEntry{
		{Name: ".", Ino: rootID, Mode: syscall.S_IFDIR},
		{Name: "..", Ino: rootID, Mode: syscall.S_IFDIR},
		{Name: statsName, Ino: statsID, Mode: syscall.S_IFREG},
	}
	for i := in.Offset; i < uint64(len(fixed)+len(d.infos)); i++ {
		var e fuse.DirEntry
		var info *volume.Info
		if i < uint64(len(fixed)) {
			e = fixed[i]
		} else {
			info = &d.infos[i-uint64(len(fixed))]
			e = fuse.DirEntry{Name: info.Name, Ino: (&node{info: *info}).ino(), Mode: syscall.S_IFREG}
		}
		e.Off = i + 1
		if !add(e, info) {
			break
		}
	}
	return fuse.OK
}

// FsyncDir has nothing to do: names are stored when they are made.
func (t *tree) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Access lets the kernel's own check of modes stand (default_permissions).
func (t *tree) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// Unlink removes a volume where that was asked for.
func (t *tree) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	defer t.other()()
	t.mu.Lock()
	n := t.byName[name]
	switch {
	case name == statsName:
		t.mu.Unlock()
		return fuse.EPERM
	case n != nil && n.pending:
		t.unlink(n)
		t.mu.Unlock()
		return fuse.OK
	case t.s.opt.ReadOnly:
		t.mu.Unlock()
		return fuse.EROFS
	case !t.s.opt.AllowRemove:
		t.mu.Unlock()
		t.s.opt.Log("rm %s refused (pid %d): a volume is removed with 'kvbfs volume rm %s', or mount with --allow-remove", name, h.Pid, name)
		return fuse.EPERM
	case n != nil && n.opens > 0:
		t.mu.Unlock()
		return fuse.EBUSY
	}
	t.mu.Unlock()
	if err := t.vols.Remove(t.s.ctx, name, nil); err != nil {
		return t.failed("remove", name, err)
	}
	t.cat.forget()
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byName[name]; n != nil {
		t.unlink(n)
	}
	return fuse.OK
}

// What a directory of disks has no use for.

func (t *tree) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (t *tree) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (t *tree) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.ENOTDIR }

func (t *tree) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return fuse.EPERM
}

func (t *tree) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (t *tree) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}
