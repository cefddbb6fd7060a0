// Package stack builds the whole stack below a mount or a command, in one
// function: URL -> store -> cache -> pool -> volumes.
//
// # The nouns
//
//   - A store URL says which kind of store and where: its scheme picks the store
//     (schemes.go lists them). Its canonical form ([Canonical]) identifies the
//     pool in the state directory and in the registry of mounts, so that two
//     spellings of one store meet.
//   - A masked URL is a canonical URL without its secrets: the only form that
//     is printed, stored or logged.
//   - The runtime directory is on tmpfs and empty after a reboot; the state
//     directory stays (dirs.go).
//
// # Errors
//
// What the user wrote wrongly wraps [ErrInput]; what failed on the way to the
// store wraps the sentinels of kvstore, pool and volume. A store whose settings
// endanger data gives a [*RefusedError] with all findings.
package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kvbfs/kvbfs/cache"
	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// ErrInput marks an error about what the user wrote (a URL, a size): trying
// again without changing it is useless.
var ErrInput = errors.New("bad input")

// inputError is a message that stands alone and is an ErrInput.
type inputError struct{ msg string }

func (e *inputError) Error() string        { return e.msg }
func (e *inputError) Is(target error) bool { return target == ErrInput }

func inputf(format string, args ...any) error { return &inputError{fmt.Sprintf(format, args...)} }

// Config of Open.
type Config struct {
	URL         string // as the user gave it; empty: DefaultURL
	Connections int    // per worker and server; 0: 1
	// CacheSize bounds the memory of the read cache in bytes; 0: none. A store that
	// is in this process or in local files has none in any case.
	CacheSize int64
	// ReadAhead bounds how far ahead of a reader in sequence is read into the cache,
	// in bytes; 0: not at all.
	ReadAhead int64
	WriteBack WriteBack
	// WaitReplicas and WaitAOF say what a flush of a Redis store waits for.
	WaitReplicas int
	WaitAOF      bool
	// Dangerous allows stores whose Inspect refuses.
	Dangerous bool
	// Damaged opens a pool of which servers were emptied, to look at it:
	// pool.Options.Damaged.
	Damaged bool
	// Stale opens volumes for reading without a lease: volume.Options.Stale.
	Stale bool
	Log   func(format string, args ...any)
}

// Stack is an opened store with all that stands on it.
type Stack struct {
	URL      string // canonical and masked: no secrets
	Store    kvstore.Store
	Pool     *pool.Pool
	Volumes  *volume.Set
	Findings []kvstore.Finding
	// Cache and WriteBack are parts of Store; nil: none.
	Cache     *cache.Store
	WriteBack *writeback.Store
	// RTT is the round trip of one small control request to each server, in the
	// order of Store.Servers: the best of a few. 0: not measured.
	RTT []time.Duration

	scratch string // state directory of a store that nobody can find again, removed at Close
	closed  int    // how many of the layers Close has closed, from the top
}

// RefusedError says that a store's settings endanger data.
type RefusedError struct {
	URL      string // masked
	Findings []kvstore.Finding
}

// Error names each finding that refuses, with its fix, one per line.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s may lose data as it is set up (--dangerous uses it all the same):", e.URL)
	for _, f := range e.Findings {
		if f.Severity != kvstore.Refuse {
			continue
		}
		fmt.Fprintf(&b, "\n  %s: %s", f.Server, f.What)
		if f.Fix != "" {
			fmt.Fprintf(&b, "\n      fix: %s", f.Fix)
		}
	}
	return b.String()
}

// openTime bounds what Open does before it gives up on a server: a user who
// starts a mount wants to be told, the waiting for ever is for data.
const openTime = 15 * time.Second

// Open builds a stack. An error says what is wrong with which part of the URL or
// which server, and what to do; after ctx was cancelled it is context.Canceled alone.
// ctx bounds the opening only, never for longer than some seconds.
func Open(caller context.Context, cfg Config) (*Stack, error) {
	ctx, cancel := context.WithTimeout(caller, openTime)
	defer cancel()
	var asking atomic.Pointer[string]
	defer cfg.tellSlow(&asking)()
	src, err := openStore(ctx, cfg)
	if errors.Is(caller.Err(), context.Canceled) {
		if err == nil {
			closeBehind(caller, src.store.Close)
		}
		return nil, context.Canceled
	}
	if err != nil {
		return nil, err
	}
	s := &Stack{URL: src.url, Store: src.store}
	if err = s.deferWrites(cfg, src.private); err == nil {
		err = s.wrap(cfg, src.private)
	}
	if err == nil {
		err = s.build(ctx, cfg, src, &asking)
	}
	if err != nil {
		closeBehind(caller, func() error { return s.Close(context.Background()) })
		if errors.Is(caller.Err(), context.Canceled) {
			return nil, context.Canceled
		}
		return nil, explain(s.URL, err)
	}
	return s, nil
}

// partingTime is what is closed after an interrupt has to be closed in.
const partingTime = 200 * time.Millisecond

// closeBehind closes what could not be used. Once ctx is cancelled it does not wait
// for long: a request to a silent server ends after seconds only, and nothing is to be
// stored.
func closeBehind(ctx context.Context, closing func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = closing()
	}()
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(partingTime):
	}
}

// slowOpen is after how long Open says what it waits for. A server that is down, which
// may just be starting, is an error before.
const slowOpen = startWait + time.Second/2

// tellSlow says once what Open waits for, if it has not ended by then: the server that
// is being asked, else the store. It ends with the call of what it returns.
func (c Config) tellSlow(asking *atomic.Pointer[string]) (stop func()) {
	if c.Log == nil {
		return func() {}
	}
	t := time.AfterFunc(slowOpen, func() {
		who, err := Canonical(c.URL)
		if server := asking.Load(); server != nil {
			who, err = *server, nil
		}
		if err == nil {
			c.Log("waiting for an answer of %s", who)
		}
	})
	return func() { t.Stop() }
}

// wrap puts the cache on the store, where it can pay: the kernel's page cache does
// the same for local files, and memory needs no copy in memory.
func (s *Stack) wrap(cfg Config, private bool) (err error) {
	if cfg.CacheSize <= 0 {
		return nil
	}
	if private || s.Store.Properties().Presence {
		if cfg.Log != nil {
			cfg.Log("no cache for %s: its blocks are in the memory of this machine already", s.URL)
		}
		return nil
	}
	if s.Cache, err = cache.Wrap(s.Store, cache.Config{Size: cfg.CacheSize, ReadAhead: cfg.ReadAhead, Log: cfg.Log}); err == nil {
		s.Store = s.Cache
	}
	return err
}

// build puts the pool and the volumes on the store.
func (s *Stack) build(ctx context.Context, cfg Config, src source, asking *atomic.Pointer[string]) error {
	if err := s.inspect(ctx, cfg.Dangerous, asking); err != nil {
		return err
	}
	run, err := RuntimeDir()
	if err != nil {
		return err
	}
	var state string
	if src.private {
		// A store inside this process begins empty each time: what an earlier one
		// was must not be remembered.
		if s.scratch, err = os.MkdirTemp(run, "mem-"); err != nil {
			return err
		}
		state = s.scratch
	} else if state, err = StateDir(); err != nil {
		return err
	}
	log := cfg.Log
	if log == nil {
		log = func(string, ...any) {}
	}
	s.Pool, err = pool.Open(ctx, s.Store, pool.Options{URL: s.URL, Name: src.pool, StateDir: state, RuntimeDir: run, Log: log,
		Damaged: cfg.Damaged})
	if err != nil {
		return err
	}
	opt := volume.Options{
		RuntimeDir: run,
		StateDir:   state,
		Lease:      pool.LeaseOptions{Notify: func(msg string) { log("%s", msg) }},
		Stale:      cfg.Stale,
		Log:        log,
	}
	opt.Opened = s.volumeOpened
	if s.WriteBack != nil {
		opt.Closed = s.WriteBack.Closed
	}
	s.Volumes = volume.New(s.Pool, s.Store, opt)
	return nil
}

// inspect measures the round trip, which also proves that each server answers,
// and asks the store for dangerous settings.
func (s *Stack) inspect(ctx context.Context, dangerous bool, asking *atomic.Pointer[string]) error {
	for i, server := range s.Store.Servers() {
		asking.Store(&server)
		rtt, err := firstTrip(ctx, s.Store.Control(), i)
		if err != nil {
			return err
		}
		s.RTT = append(s.RTT, rtt)
	}
	asking.Store(nil)
	var err error
	if s.Findings, err = s.Store.Inspect(ctx); err != nil {
		return fmt.Errorf("looking at the store's settings: %w", err)
	}
	if dangerous {
		return nil
	}
	for _, f := range s.Findings {
		if f.Severity == kvstore.Refuse {
			return &RefusedError{URL: s.URL, Findings: s.Findings}
		}
	}
	return nil
}

// Unreachable asks each server for a sign of life and returns the errors of those
// that give none before ctx ends, in the order of Store.Servers; nil for the others.
func (s *Stack) Unreachable(ctx context.Context) []error {
	out := make([]error, len(s.Store.Servers()))
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			err := kvstore.Contain(func() error {
				_, err := s.Store.Control().Get(ctx, i, pingRecord)
				return err
			})
			if !errors.Is(err, kvstore.ErrAbsent) {
				out[i] = err
			}
		})
	}
	wg.Wait()
	return out
}

// pingRecord is a control record that never exists.
const pingRecord = "kvbfs:ping"

// startWait is how long a server may take to listen after it was started: memcached
// -d goes into the background before it does.
const startWait = time.Second

// firstTrip is roundTrip to a server that may just be starting.
func firstTrip(ctx context.Context, c kvstore.Control, server int) (rtt time.Duration, err error) {
	for begin := time.Now(); ; {
		rtt, err = roundTrip(ctx, c, server)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > startWait {
			return rtt, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return rtt, err
		}
	}
}

// roundTrip returns the best of a few reads of a record that does not exist.
func roundTrip(ctx context.Context, c kvstore.Control, server int) (time.Duration, error) {
	best := time.Duration(0)
	for range 4 { // the first one pays for the connection
		begin := time.Now()
		if _, err := c.Get(ctx, server, pingRecord); err != nil && !errors.Is(err, kvstore.ErrAbsent) {
			return 0, err
		}
		if d := time.Since(begin); best == 0 || d < best {
			best = d
		}
	}
	return best, nil
}

// explained is an error with what explain adds.
type explained struct {
	error
	hint string
}

func (e *explained) Error() string { return e.error.Error() + e.hint }
func (e *explained) Unwrap() error { return e.error }

// Hint returns what the message of an error of Open ends with if that tells the reader
// of a command what to do; else it is empty.
func Hint(err error) string {
	var e *explained
	if errors.As(err, &e) {
		return e.hint
	}
	return ""
}

// explain adds to an error which store it is about and what to do.
func explain(url string, err error) error {
	hint := ""
	var refused *RefusedError
	switch {
	case errors.As(err, &refused), errors.Is(err, ErrInput):
		return err
	case strings.Contains(err.Error(), "kvbfs pool forget"): // it says itself what to do
	case errors.Is(err, pool.ErrForgotten), errors.Is(err, kvstore.ErrServerLost):
		hint = "; its data is gone: if you accept that, `kvbfs pool forget " + url + "` lets it be used anew"
	case errors.Is(err, pool.ErrOtherServers):
		hint = "; name all servers of the pool in the URL, in their order"
	case Distrust(err) != "":
		hint = Distrust(err)
	case errors.Is(err, kvstore.ErrUnreachable):
		hint = "; is the server running? `kvbfs doctor " + url + "` tells how to start it"
	case errors.Is(err, os.ErrPermission):
		hint = "; it is not yours: run as its owner, or choose another store with --store"
	}
	return &explained{fmt.Errorf("store %s: %w", url, err), hint}
}

// Close closes all in order: volumes, pool, store. If volumes cannot be closed the
// rest stays open for another try; a Close after one that succeeded does nothing.
// It must not run twice at once.
func (s *Stack) Close(ctx context.Context) error {
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	if s.closed == 0 {
		if s.Volumes != nil {
			if err := s.Volumes.Close(ctx); err != nil {
				return err // what is still open needs the layers below it
			}
		}
		s.closed = 1
	}
	if s.closed == 1 {
		s.closed = 2
		if s.Pool != nil {
			keep(s.Pool.Close())
		}
		keep(s.Store.Close())
		if s.scratch != "" {
			keep(os.RemoveAll(s.scratch))
		}
	}
	return first
}
