package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore"
)

// Config of Serve.
type Config struct {
	Stack     stack.Config
	URLSource string // where the URL came from, for the banner: "--store", "KVBFS_STORE", "default"
	// FS is what fusefs is given; Serve fills Dir (from Dir), Name and Log.
	FS  fusefs.Options
	Dir string // canonical mount point, or /dev/fd/N of a connection mounted already
	// Background is true for a daemon whose output goes to LogPath.
	LogPath string
	Version string
	// MLock keeps the daemon's memory from being swapped out; the start fails where
	// that is not allowed.
	MLock bool
	// Ready is told once the mount serves. nil: nobody waits.
	Ready func(banner string)
}

// ErrForced: the daemon ended by force; what was not acknowledged is lost.
var ErrForced = errors.New("ended by force: requests in flight were failed")

// procsPerWorker is how many threads of Go code there may be per worker beside
// one per CPU: a worker sits in a blocking system call on its own socket, and
// would else hold a CPU's share until the runtime notices.
const procsPerWorker = 1

// server is a mount that is being served.
type server struct {
	cfg   Config
	log   func(format string, args ...any)
	entry *entry
	mount Mount
	stack *stack.Stack
	fs    *fusefs.Server

	ending  sync.Mutex    // held by who unmounts; guards nothing else
	gone    chan struct{} // closed when the mount is gone
	ended   chan struct{} // closed when all is stored and closed, or given up
	force   chan struct{} // closed by who wants the end at any price
	once    sync.Once     // closes force
	err     error         // why it ended; valid after ended
	files   uint64        // that may be open
	granted string        // what the kernel granted, for the log

	// serving is s once stack and fs are there, for who looks from outside.
	serving atomic.Pointer[server]

	stopResume func() // ends the resumption of removals, and waits for it

	mu    sync.Mutex // guards drain
	drain string     // what the end waits for, for people
}

// Serve serves a mount until it is unmounted, and returns when everything is
// stored and closed. It owns SIGTERM and SIGINT meanwhile: the first one unmounts
// if nobody uses the mount (else it names the users and goes on), the second one
// (soon after, or while the first one still drains) forces. It must not be called twice in a process.
func Serve(ctx context.Context, cfg Config) error {
	begin := time.Now()
	cpus := min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) // that this process may use: a container's quota counts
	if cfg.FS.Workers <= 0 {
		cfg.FS.Workers = cpus
	}
	runtime.GOMAXPROCS(cpus + cfg.FS.Workers*procsPerWorker)
	s := &server{cfg: cfg, log: cfg.Stack.Log, gone: make(chan struct{}), ended: make(chan struct{}), force: make(chan struct{})}
	if s.log == nil {
		s.log = func(string, ...any) {}
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE) // a terminal or a log reader that goes takes no disk with it

	notes, err := s.prepare()
	if err != nil {
		return err
	}
	defer s.dumpOnQuit()()

	if err := s.startUnless(ctx, signals); err != nil {
		return err
	}
	s.serving.Store(s)
	s.resumeRemovals()
	control, err := listen(s.mount.Socket, s.methods(), s.log)
	if err == nil {
		s.mount.Ready = true
		err = s.entry.write(s.mount)
	}
	if err != nil {
		_ = s.fs.Unmount(true)
		lost, closing := s.closeAll(context.Background())
		return errors.Join(err, lost, closing)
	}
	if cfg.Ready != nil {
		cfg.Ready(s.banner(cfg.FS.Workers, notes, time.Since(begin)))
	}
	s.log("granted: %s", s.granted)
	err = s.run(signals)
	control.close()
	if errors.Is(err, ErrForced) {
		if _, ok := FUSEMount(s.mount.Dir); ok {
			_ = Detach(s.mount.Dir) // else a dead mount is left behind
		}
	}
	if err == nil && cfg.LogPath != "" {
		// It ended well: nobody needs to read why.
		removeLog(os.Stderr, cfg.LogPath)
	}
	s.entry.release()
	return err
}

// startUnless starts; until the mount serves a signal ends that.
func (s *server) startUnless(ctx context.Context, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case sig := <-signals:
			s.log("%v: giving up the start", sig)
			cancel()
		case <-started:
		}
	}()
	err := s.start(ctx)
	close(started)
	<-watched
	return err
}

// start claims the mount point, builds the stack and mounts. On failure nothing
// is left behind.
func (s *server) start(ctx context.Context) (err error) {
	s.mount = Mount{Dir: s.cfg.Dir, PID: os.Getpid(), Log: s.cfg.LogPath, Started: time.Now().Round(0), Caching: cachingOf(s.cfg.Stack)}
	if s.mount.Store, err = stack.Canonical(s.cfg.Stack.URL); err != nil {
		return err
	}
	if strings.HasPrefix(s.mount.Dir, "/dev/fd/") {
		// A number of ours says nothing to others: make it one of a kind.
		s.mount.Dir = fmt.Sprintf("/proc/%d/fd/%s", os.Getpid(), strings.TrimPrefix(s.mount.Dir, "/dev/fd/"))
	}
	base, err := basePath(s.mount.Dir)
	if err != nil {
		return err
	}
	s.mount.Socket = base + ".sock"
	if s.entry, err = claim(s.mount); err != nil {
		return err
	}
	if s.stack, err = stack.Open(ctx, s.cfg.Stack); err != nil {
		s.entry.release()
		return err
	}
	opt := s.cfg.FS
	if opt.Channels, err = s.channels(); err != nil {
		_ = s.stack.Close(context.Background())
		s.entry.release()
		return err
	}
	opt.Dir, opt.Name, opt.Log, opt.Usage = s.cfg.Dir, s.stack.URL, s.log, s.stack.Store.Usage
	if s.stack.Cache != nil {
		opt.Cache = func() any { return s.stack.Cache.Stats() }
	}
	if s.stack.WriteBack != nil {
		opt.WriteBack = func() any { return s.stack.WriteBack.Stats() }
	}
	if s.fs, err = fusefs.Mount(ctx, s.stack.Volumes, opt); err != nil {
		_ = s.stack.Close(context.Background())
		s.entry.release()
		return err
	}
	if dir := s.fs.Dir(); dir != opt.Dir {
		s.mount.Dir = dir // of a connection that was passed: where it is mounted
	}
	return nil
}

// resumeRemovals finishes, beside the serving, what an interrupted removal left.
func (s *server) resumeRemovals() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.stopResume = func() { cancel(); <-done }
	go func() {
		defer close(done)
		if s.cfg.FS.ReadOnly {
			return
		}
		err := s.contained("removing what an interrupted removal left", func() error { return s.stack.Volumes.ResumeRemovals(ctx) })
		if err != nil && ctx.Err() == nil {
			s.log("removing what an interrupted removal left: %v; the next mount tries again", err)
		}
	}()
}

func (s *server) isGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// forceWindow is how long after a signal another one forces. One that comes later
// is a new wish to end in order: the one before was refused long ago.
const forceWindow = 30 * time.Second

// run waits for the end and for signals.
func (s *server) run(signals <-chan os.Signal) error {
	go func() {
		s.fs.Wait()
		close(s.gone)
	}()
	go s.finish()
	var first time.Time // of the signals that belong together
	for {
		select {
		case <-s.ended:
			return s.err
		case sig := <-signals:
			again := !first.IsZero() && (s.isGone() || time.Since(first) < forceWindow)
			first = time.Now()
			if again {
				s.log("%v again: ending by force", sig)
				go s.end(true)
				continue
			}
			s.log("%v: unmounting %s", sig, s.mount.Dir)
			go func() {
				if err := s.end(false); err != nil {
					s.log("%v; serving on (a second signal within %v forces)", err, forceWindow)
				}
			}()
		}
	}
}

// end unmounts: an ErrBusy that names the users if it is in use, and then the
// mount serves on. It returns when the mount is gone, not when all is stored.
func (s *server) end(force bool) error {
	if force {
		// Before the lock: who holds it may be waiting for what only force ends.
		s.once.Do(func() { close(s.force) })
		return s.fs.Unmount(true)
	}
	s.ending.Lock()
	defer s.ending.Unlock()
	if s.isGone() {
		return nil
	}
	if len(devicesOn(s.mount.Dir)) > 0 {
		// A loop device may have gone lazily with its mount namespace: the kernel would
		// let us unmount, and the device would be dead.
		return fmt.Errorf("%w: %s is used by %s", fusefs.ErrBusy, s.mount.Dir, strings.Join(fusefs.Users(s.mount.Dir), ", "))
	}
	return s.fs.Unmount(false)
}

const (
	// forcedClose bounds the clean-up after force: enough to give a lease back to
	// a server that answers.
	forcedClose = 5 * time.Second
	// drainRetry is the pause after an attempt to close that failed.
	drainRetry = 2 * time.Second
)

// finish drains and closes all once the mount is gone, whoever unmounted it.
func (s *server) finish() {
	defer close(s.ended)
	select {
	case <-s.gone:
	case <-s.force:
		select {
		case <-s.gone:
		case <-time.After(forcedClose): // even the forced unmount hangs
			s.err = ErrForced
			return
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.drainAll(ctx) }()
	select {
	case s.err = <-done:
		return
	case <-s.force:
	}
	select {
	case <-done: // what was lost all the same is in the log
		s.err = ErrForced
		return
	case <-time.After(forcedClose):
	}
	cancel()
	select {
	case <-done:
	case <-time.After(forcedClose):
	}
	s.err = ErrForced
}

// drainAll closes everything and tries again for as long as something is not
// stored: giving up would lose it. What is lost already is no reason to try again,
// but the error in the end.
func (s *server) drainAll(ctx context.Context) error {
	var lost error // the first
	for {
		s.setDrain("writing what is left to the store")
		err := s.contained("closing", func() error {
			l, err := s.closeAll(ctx)
			if lost == nil {
				lost = l
			}
			return err
		})
		if err == nil {
			return s.withLoss(lost)
		}
		if ctx.Err() != nil {
			return err
		}
		s.log("closing %s: %v; trying again (a second signal, or umount --force, gives up)", s.mount.Dir, err)
		s.setDrain(err.Error())
		select {
		case <-time.After(drainRetry):
		case <-ctx.Done():
			return err
		}
	}
}

// closeAll closes everything. err is what may be tried again; lost is of volumes that
// are closed for good with a loss, and all else is closed all the same.
func (s *server) closeAll(ctx context.Context) (lost, err error) {
	s.stopResume()
	if err = s.fs.Close(ctx); fusefs.ClosedForGood(err) {
		lost, err = err, nil
	}
	if err != nil {
		return lost, err
	}
	for {
		if err = s.stack.Close(ctx); !fusefs.ClosedForGood(err) {
			return lost, err
		}
		if lost == nil { // each such round closes a volume, so this ends
			lost = err
		}
	}
}

// withLoss is the end of a mount that lost something, for people; nil if it did not.
func (s *server) withLoss(lost error) error {
	if lost == nil {
		return nil
	}
	where := ""
	if s.cfg.LogPath != "" {
		where = "; its log is " + s.cfg.LogPath
	}
	return fmt.Errorf("%s is unmounted, but not all is stored: %w%s", s.mount.Dir, lost, where)
}

// contained calls f; a panic in it is logged and an error.
func (s *server) contained(what string, f func() error) error {
	err := kvstore.Contain(f)
	kvstore.LogPanic(s.log, what, err)
	return err
}

func (s *server) setDrain(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain = text
}

// draining says what the end waits for, and why as far as it is known.
func (s *server) draining() string {
	s.mu.Lock()
	drain := s.drain
	s.mu.Unlock()
	if why := s.fs.Closing(); drain != "" && why != nil {
		drain += ": " + why.Error()
	}
	return drain
}

// methods are all calls of the control socket.
func (s *server) methods() map[string]method {
	m := volumeMethods(Local{s.stack}, s.fs.Resized, s.fs.SetTimeout)
	m["status"] = bind(func(ctx context.Context, _ struct{}, _ func(Progress)) (any, error) { return s.status(ctx), nil })
	m["umount"] = bind(s.umount)
	m["abort"] = bind(func(_ context.Context, p Named, _ func(Progress)) (any, error) {
		return nil, s.stack.Volumes.Abort(p.Name)
	})
	return m
}

// lookEvery is after how many ticks umount asks the servers for a sign of life.
const lookEvery = 6

// umount answers when everything is stored. A caller who goes away does not stop
// it.
func (s *server) umount(ctx context.Context, p UmountParams, progress func(Progress)) (any, error) {
	if err := s.end(p.Force); err != nil {
		return nil, err
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last, silent := "", []ServerTrouble(nil)
	for ticks := 0; ; ticks++ {
		select {
		case <-s.ended:
			if p.Force && errors.Is(s.err, ErrForced) {
				return nil, nil // as asked
			}
			return nil, s.err
		case <-tick.C:
			if ticks%lookEvery == 0 {
				silent = s.status(ctx).Unreachable
			}
			now := (&Status{Draining: s.draining(), Unreachable: silent}).WaitsFor()
			if now != last {
				last = now
				progress(Progress{Text: now})
			}
		}
	}
}
