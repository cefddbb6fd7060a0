package fusefs

import (
	"encoding/binary"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Node ids that are fixed. Those of images are counted up from firstID and never
// used again, so a volume that was removed and made again is another inode.
const (
	rootID  = fuse.FUSE_ROOT_ID
	statsID = 2
	firstID = 16
)

// statsName is the file of counters. No volume can have it: names begin with a
// letter or digit.
const statsName = ".stats"

// node is an image, pending or not, that the kernel knows or did.
type node struct {
	id   uint64
	name string

	// changing is held while the node's volume is made, opened or resized.
	changing sync.Mutex

	// Guarded by tree.mu.
	info      volume.Info
	lookups   uint64 // references of the kernel, given back by FORGET
	opens     int
	pending   bool // no volume yet
	gone      bool // the name leads here no more
	vol       *volume.Volume
	volRefs   int       // handles that hold vol
	allocated int64     // of a volume that is not open here
	allocAt   time.Time // when that was read
}

// handle is one open of an image or of .stats.
type handle struct {
	n     *node // nil: .stats
	write bool
	pid   uint32
	vol   atomic.Pointer[volume.Volume] // one reference of it; nil: pending
	data  []byte                        // .stats: its content
}

// tree is the file system: the names, the nodes, the handles. Its methods are
// spread over names.go, open.go, data.go, size.go and statfs.go.
type tree struct {
	fuse.RawFileSystem // answers ENOSYS to what we do not have

	s      *Server
	vols   *volume.Set
	cat    catalogue
	usage  usage
	uid    uint32
	gid    uint32
	born   time.Time
	quiet  *limiter      // of log lines about requests that failed
	others atomic.Uint64 // requests that are not data

	// handles is indexed by fh-1; replaced whole by open and release.
	handles atomic.Pointer[[]*handle]
	dirs    atomic.Pointer[[]*dirHandle]

	mu       sync.Mutex // guards what follows and the nodes' fields
	byID     map[uint64]*node
	byName   map[string]*node
	lastID   uint64
	timeouts map[string]time.Duration // by volume; "" is all others
}

func newTree(s *Server, vols *volume.Set) *tree {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		s:             s,
		vols:          vols,
		cat:           catalogue{read: vols.List, only: s.opt.Only},
		usage:         usage{read: s.opt.Usage},
		uid:           uint32(os.Geteuid()),
		gid:           uint32(os.Getegid()),
		born:          time.Now(),
		quiet:         newLimiter(s.opt.Log),
		byID:          make(map[uint64]*node),
		byName:        make(map[string]*node),
		lastID:        firstID,
		timeouts:      map[string]time.Duration{"": s.opt.Timeout},
	}
	t.handles.Store(new([]*handle))
	t.dirs.Store(new([]*dirHandle))
	return t
}

// String names the file system in messages of go-fuse.
func (t *tree) String() string { return "kvbfs" }

// node returns a node by id.
func (t *tree) node(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// idOf returns the id of the node that a name leads to.
func (t *tree) idOf(name string) (uint64, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byName[name]
	if n == nil {
		return 0, false
	}
	return n.id, true
}

// enter returns the node of a volume, made if need be, with what is known of the
// volume brought up to date and one reference of the kernel more if looked.
func (t *tree) enter(info volume.Info, looked bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.enterHeld(info, looked)
}

// enterHeld is enter. t.mu is held.
func (t *tree) enterHeld(info volume.Info, looked bool) *node {
	n := t.byName[info.Name]
	if n != nil && !n.pending && n.vol == nil && n.info.UUID != info.UUID {
		t.unlink(n) // another volume of the same name
		n = nil
	}
	if n == nil {
		n = t.add(info.Name)
	}
	if n.vol == nil || n.info.UUID == info.UUID {
		n.info, n.pending = info, false
	}
	if looked {
		n.lookups++
	}
	return n
}

// enterListed is enter for READDIRPLUS, whose list may be older than what is known: nil
// if the name leads to a node that it may not speak for. The kernel looks it up then.
func (t *tree) enterListed(info volume.Info) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byName[info.Name]; n != nil && (n.pending || n.vol == nil && n.info.UUID != info.UUID) {
		return nil
	}
	return t.enterHeld(info, true)
}

// add makes a node. t.mu is held.
func (t *tree) add(name string) *node {
	t.lastID++
	n := &node{id: t.lastID, name: name}
	t.byID[n.id] = n
	t.byName[name] = n
	return n
}

// unlink takes the name off a node. t.mu is held.
func (t *tree) unlink(n *node) {
	n.gone = true
	if t.byName[n.name] == n {
		delete(t.byName, n.name)
	}
	t.drop(n)
}

// drop forgets a node that nobody refers to. t.mu is held.
func (t *tree) drop(n *node) {
	if n.lookups > 0 || n.opens > 0 {
		return
	}
	delete(t.byID, n.id)
	if t.byName[n.name] == n {
		delete(t.byName, n.name)
	}
}

// Forget gives back references of the kernel.
func (t *tree) Forget(id, nlookup uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	n.lookups -= min(nlookup, n.lookups)
	t.drop(n)
}

// ino is the inode number that stat shows: made of the volume's uuid, so that it
// is the same on every mount, and never one of the fixed ids.
func (n *node) ino() uint64 {
	if n.info.UUID == ([16]byte{}) {
		return n.id
	}
	u := n.info.UUID
	return binary.BigEndian.Uint64(u[:8]) ^ binary.BigEndian.Uint64(u[8:]) | 1<<63
}

// handle returns an open handle, nil if there is none. It takes no lock.
func (t *tree) handle(fh uint64) *handle {
	hs := *t.handles.Load()
	if fh == 0 || fh > uint64(len(hs)) {
		return nil
	}
	return hs[fh-1]
}

// put stores a handle and returns its fh. Opens are rare and few, so the table
// is copied, and the data path needs no lock. t.mu is held.
func put[H any](table *atomic.Pointer[[]*H], h *H) uint64 {
	old := *table.Load()
	hs := make([]*H, len(old), len(old)+1)
	copy(hs, old)
	for i := range hs {
		if hs[i] == nil {
			hs[i] = h
			table.Store(&hs)
			return uint64(i + 1)
		}
	}
	hs = append(hs, h)
	table.Store(&hs)
	return uint64(len(hs))
}

// take removes a handle. t.mu is held.
func take[H any](table *atomic.Pointer[[]*H], fh uint64) *H {
	old := *table.Load()
	if fh == 0 || fh > uint64(len(old)) {
		return nil
	}
	hs := make([]*H, len(old))
	copy(hs, old)
	h := hs[fh-1]
	hs[fh-1] = nil
	table.Store(&hs)
	return h
}

// dropHandles takes all handles away and returns the references that they held.
func (t *tree) dropHandles() (vols []*volume.Volume) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range *t.handles.Load() {
		if h == nil || h.n == nil {
			continue
		}
		h.n.opens--
		if v := h.vol.Swap(nil); v != nil {
			vols = append(vols, v)
			h.n.volRefs--
			if h.n.volRefs == 0 {
				h.n.vol = nil
			}
		}
	}
	t.handles.Store(new([]*handle))
	return vols
}

// setTimeout implements Server.SetTimeout.
func (t *tree) setTimeout(name string, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if name == "" {
		clear(t.timeouts)
	}
	t.timeouts[name] = d
	for _, n := range t.byID {
		if n.vol != nil && (name == "" || n.name == name) {
			n.vol.SetTimeout(d)
		}
	}
}

// timeout of a volume. t.mu is held.
func (t *tree) timeout(name string) time.Duration {
	if d, ok := t.timeouts[name]; ok {
		return d
	}
	return t.timeouts[""]
}
