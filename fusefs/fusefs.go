// Package fusefs serves the volumes of a pool as files: one directory, in it one
// sparse file per volume and the read-only file .stats.
//
// READ and WRITE of images are served in batches on the threads that take them from
// the kernel, over io_uring (package uring) or from /dev/fuse (package devfuse), by
// the thread's own worker (inplace.go). All else is decoded by go-fuse, which calls
// its RawFileSystem, on goroutines of their own (cold.go).
//
// What would hold a batch up joins the queue of another worker, and whoever finds
// that idle leads: it takes all that queued, serves it as one batch and wakes the
// others (dispatch.go).
//
// # The nouns
//
//   - A node is a name that the kernel knows: the root, .stats, an image, or a
//     pending image (nodes.go).
//   - An image is the file of a volume. A pending image was created and has no
//     size yet; it lives in memory only and becomes a volume when it is given
//     its first size (`truncate -s 10G DIR/NAME`).
//   - A handle is one open of a node; it holds one reference of its volume.
//   - A call is one data request on its way through a lane: a queue, the worker
//     that serves it, and whoever leads it at the moment.
//
// # The flow
//
//	uring, devfuse -> inplace -> volume.Worker
//	               -> cold -> go-fuse -> tree (names.go, open.go, data.go, size.go) -> dispatcher -> volume.Worker
//
// Large READs and WRITEs go through bulk lanes, so that small ones do not wait for
// them. FSYNC and FALLOCATE go through the slow ones, so that nothing that takes long by nature holds up
// reads. A lane whose batch does not return is relieved of its queue (watch.go).
//
// # Locks
//
// The data path takes none: handles are looked up in a slice that is replaced
// whole, lanes are lists with an atomic head, in-flight requests are stamps in
// atomic slots. The slow paths take, in this order and never two of one kind:
// node.changing (held during store access, orders CREATE-to-size and open on one
// node), tree.mu (never held during store access), then the leaves catalogue.mu,
// usage.mu, closer.mu, connection.mu.
//
// # The traps
//
// This process must never touch its own mount: not open, not stat, not unmount
// by way of a path below it. What is needed to know about it comes from
// /proc/self/mountinfo and /sys. Notifications to the kernel are sent from
// goroutines of their own, since the kernel may hold the lock of the inode whose
// request we are serving.
package fusefs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/devfuse"
	"github.com/kvbfs/kvbfs/fusefs/uring"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

var (
	// ErrBusy: the mount is in use. The wrapped text names the users.
	ErrBusy = errors.New("mount is in use")
	// ErrNoFUSE: /dev/fuse is missing or may not be opened.
	ErrNoFUSE = errors.New("no /dev/fuse")
	// ErrMountPoint: the mount point is not one, or not a safe one.
	ErrMountPoint = errors.New("bad mount point")
)

// Options of Mount.
type Options struct {
	Dir           string   // mount point, or /dev/fd/N of a connection mounted already
	Name          string   // what mount(8) shows as the source: the store URL, masked
	Only          []string // serve these volumes only; empty: all
	AllowOther    bool
	AllowRemove   bool // rm removes volumes
	ReadOnly      bool
	Workers       int           // parallel batches; 0: number of CPUs
	Timeout       time.Duration // per request while a server is silent; 0: for ever
	MaxBackground int           // 0: 128 per volume, at least 256
	// Channels bounds how many channels to the store the lanes have together, each
	// with a connection per server; 0: some 150 while servers are silent.
	Channels int
	Log      func(format string, args ...any)
	Debug    bool
	// Transport: empty is TransportAuto. Where the kernel or our rights do not
	// allow io_uring it is TransportDev, with a line in the log.
	Transport Transport
	// Stats renders the .stats file; nil: the package's own counters as JSON
	// (Server.StatsJSON).
	Stats func() []byte
	// Cache renders what a cache below the volumes did, for .stats. nil: there is
	// none.
	Cache func() any
	// WriteBack is the same for writes that are acknowledged before they are stored.
	WriteBack func() any
	// Usage answers STATFS (Store.Control().Usage); it is asked at most once a
	// second. nil: the capacity is shown as unknown, that is as very large.
	Usage func(ctx context.Context) (kvstore.Usage, error)
}

// Server is a served mount. All methods may be called at any time by any
// goroutine, unless said.
type Server struct {
	opt  Options
	dir  string // resolved mount point, or /dev/fd/N
	tree *tree
	disp *dispatcher
	conn *connection
	cold *cold
	// reader takes requests from /dev/fuse: all of them, or what rings leave to it.
	reader *devfuse.Conn
	rings  *uring.Conn   // nil on /dev/fuse
	done   chan struct{} // closed when nobody serves any more

	// ctx ends when requests in flight must fail: forced unmount, or the kernel
	// aborted the connection.
	ctx    context.Context
	cancel context.CancelFunc

	closer closer
	watch  watchdog

	background atomic.Int32 // max_background as the kernel has it now

	unmounting sync.Mutex // one plain Unmount at a time
	closing    sync.Mutex // one Close at a time
}

// maxRequest is the largest READ or WRITE in bytes that we let the kernel send.
// Each request in flight has room for so much, so it is memory times queue depth
// (as much of it as is used); and a larger request gains little, since the volume sends
// 128 KiB of a request at a time. The kernel splits what is larger; the parts are
// in flight together if the reader is asynchronous, as loop devices are.
const maxRequest = 256 << 10

// Queue depth: loop devices send up to 128 requests at once, and with
// asynchronous direct I/O every one counts as a background request.
const (
	backgroundPerVolume = 128
	minBackground       = 256
	maxBackground       = 1<<16 - 1 // the protocol has 16 bits for it
)

// Mount mounts and begins to serve; when it returns without error the kernel's
// INIT was answered. ctx bounds the mounting only.
func Mount(ctx context.Context, vols *volume.Set, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = func(string, ...any) {}
	}
	dir, err := checkMountPoint(opt.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{opt: opt, dir: dir, done: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.disp = newDispatcher(s.ctx, func(ctx context.Context) (worker, error) { return vols.Worker(ctx) }, opt.Workers, opt.Log)
	s.disp.bound(opt.Channels)
	s.tree = newTree(s, vols)
	s.closer.init(opt.Log)

	background := opt.MaxBackground
	if background <= 0 {
		// An unreachable store is not an error here: requests will say so.
		infos, _ := s.tree.cat.list(ctx, 0)
		background = backgroundPerVolume * len(infos)
	}
	background = min(max(background, minBackground), maxBackground)
	s.background.Store(int32(background))

	err = errNoRings
	if opt.Transport != TransportDev && passedFD(dir) < 0 {
		if err = withRings(func() error { return s.handshake(background, true) }); errors.Is(err, errNoRings) {
			opt.Log("%v; using /dev/fuse", err)
		}
	}
	if errors.Is(err, errNoRings) { // what else fails would fail again
		err = s.handshake(background, false)
	}
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.conn.identify()
	go func() {
		defer close(s.done)
		s.reader.Wait()
		if err := s.reader.Err(); err != nil {
			opt.Log("reading requests from /dev/fuse: %v", err)
		}
		if s.rings != nil {
			s.rings.Wait()
		}
		_ = unix.Close(s.conn.fd)
		s.conn.close()
	}()
	s.watch.start(s)
	return s, nil
}

// handshake mounts and answers INIT. After an error nothing is mounted.
func (s *Server) handshake(background int, overRings bool) error {
	var err error
	if s.conn, err = connect(s.dir, &s.opt); err != nil {
		return err
	}
	opts := s.mountOptions(background)
	if overRings {
		opts.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
	}
	s.cold = newCold(s.tree, opts, s.opt.Log)
	if err = devfuse.ReadInit(s.conn.fd, s.cold.init); err == nil {
		if overRings {
			err = s.startRings()
		} else {
			err = s.startReader()
		}
	}
	if err != nil {
		_ = unix.Close(s.conn.fd) // nobody serves it
		s.conn.abandon()
		if overRings && !errors.Is(err, errNoRings) {
			err = fmt.Errorf("%w: %w", errNoRings, err)
		}
	}
	return err
}

func (s *Server) mountOptions(background int) *fuse.MountOptions {
	return &fuse.MountOptions{
		AllowOther:    s.opt.AllowOther,
		MaxBackground: background,
		MaxWrite:      maxRequest,
		FsName:        s.opt.Name,
		Name:          fsSubtype,
		// getxattr(security.capability) would come with each fallocate otherwise.
		DisableXAttrs: true,
		// Splice costs three system calls per READ and wins nothing here.
		DisableSplice: true,
		// Without it the kernel sends direct I/O one request at a time.
		ExtraCapabilities: fuse.CAP_ASYNC_DIO,
		PanicHandler:      s.panicked,
		Logger:            fuseLogger(s.opt.Log),
		Debug:             s.opt.Debug,
	}
}

// Wait returns when the mount is gone, whoever unmounted it.
func (s *Server) Wait() { <-s.done }

// Transport says which one it came to be.
func (s *Server) Transport() Transport {
	if s.rings != nil {
		return TransportURing
	}
	return TransportDev
}

// Dir returns the resolved mount point; /dev/fd/N if it is not known.
func (s *Server) Dir() string {
	if mp := s.conn.mountPoint(); mp != "" {
		return mp
	}
	return s.dir
}

// Connection returns the number of the connection below
// /sys/fs/fuse/connections, 0 if it could not be found out.
func (s *Server) Connection() int { return s.conn.number }

// SetTimeout changes Options.Timeout for one volume, or for all if volume is
// empty, now and for later opens: 0 waits for ever.
func (s *Server) SetTimeout(volume string, d time.Duration) { s.tree.setTimeout(volume, d) }

// Resized tells the kernel that a volume's size changed. It returns at once.
func (s *Server) Resized(volume string) {
	s.tree.cat.forget()
	id, ok := s.tree.idOf(volume)
	if !ok {
		return
	}
	// Never from the caller's goroutine: it may serve a request on this very inode.
	go func() {
		select {
		case <-s.done:
		default:
			// The mount may be gone, or the inode forgotten: then nobody needs to know.
			s.conn.with(func(fd int) { _ = devfuse.Invalidate(fd, id, 0, 0) })
		}
	}()
}

// Close flushes and closes volumes and workers after the mount is gone; it waits
// for that. If a volume cannot be closed before ctx ends its error is returned,
// and Close may be called again. If one was closed with a loss, also long ago, all
// is closed and the error is one of ClosedForGood, from each call.
func (s *Server) Close(ctx context.Context) error {
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.closing.Lock()
	defer s.closing.Unlock()
	s.watch.stop()
	// The kernel drops the RELEASE requests that it had queued when the mount went.
	for _, v := range s.tree.dropHandles() {
		s.closer.add(v)
	}
	lost := s.closer.wait(ctx)
	if lost != nil && !ClosedForGood(lost) {
		return lost
	}
	s.cancel()
	return errors.Join(lost, s.disp.close())
}
