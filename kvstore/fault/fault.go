// Package fault is a decorator that makes a store misbehave on purpose and
// counts what reaches it, for tests of the layers above: batches that take long,
// operations that fail, writes that are acknowledged and dropped.
//
// # The nouns
//
//   - A [Rule] says which operations are hit, how often, and what happens; Parse
//     reads rules from text (rules.go).
//   - A hook is a function that decides per operation, for what rules cannot say.
//   - The gate holds all batches while it is shut, as a server that was stopped.
//   - Counters prove what was sent, and how much of it in parallel.
//
// # Data flow
//
// Channel.Do waits for the gate and the delay, sorts the batch into operations
// to pass on and operations to answer itself, passes the former on in one Do,
// and spoils the results of those that "fail after". What passes untouched costs
// no allocation.
//
// # Lock order
//
// Store.mu is a leaf. It guards the rules' state, so one seed gives one sequence
// of faults for one sequence of operations.
package fault

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Action is what happens to an operation.
type Action uint8

const (
	// Pass hands it on.
	Pass Action = iota
	// Fail answers it with Err; the store never sees it.
	Fail
	// FailAfter lets the store do it and answers with Err nevertheless: a reply
	// that was lost.
	FailAfter
	// Drop acknowledges it although the store never sees it: a lie that the
	// tests above must find.
	Drop
	// Late acknowledges it at once and does it lateBy later, in order: what a store
	// does that answers before it has stored. Only for Write.
	Late
	// Panic panics in the caller's goroutine, as a bug would.
	Panic
)

// lateBy is how much later a Late write is done.
const lateBy = 300 * time.Millisecond

// Hook decides about one operation; err is the answer of Fail and FailAfter. It
// is called by several goroutines at once and must not keep op.
type Hook func(op *kvstore.Op) (a Action, err error)

// Store decorates a store. Safe for concurrent use; its faults may be changed at
// any time.
type Store struct {
	inner kvstore.Store

	mu    sync.Mutex // guards all below
	rng   *rand.Rand
	rules []armed
	hook  Hook
	delay time.Duration
	gate  chan struct{} // closed while open

	late chan lateWrite // made by the first Late

	counters counters
}

// Wrap decorates a store, without faults at first. Whoever wraps it closes only
// the wrapper. seed makes the choices of Rule.Probability repeatable.
func Wrap(inner kvstore.Store, seed uint64) *Store {
	s := &Store{inner: inner, rng: rand.New(rand.NewPCG(seed, 2)), gate: make(chan struct{})}
	close(s.gate)
	return s
}

// SetRules replaces the rules and starts their counting anew. None: no faults.
func (s *Store) SetRules(rules ...Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = nil
	for _, r := range rules {
		s.rules = append(s.rules, armed{Rule: r})
	}
}

// SetHook replaces the hook, which is asked where no rule hit. nil: none.
func (s *Store) SetHook(h Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = h
}

// SetDelay makes each batch and flush wait that long before it is handed on.
func (s *Store) SetDelay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Stop shuts the gate: batches, flushes and control calls wait until Continue or
// the end of their context, as on a server that was stopped.
func (s *Store) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.gate:
		s.gate = make(chan struct{})
	default: // shut already
	}
}

// Continue opens the gate.
func (s *Store) Continue() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.gate:
	default:
		close(s.gate)
	}
}

// pass waits for the gate and the delay.
func (s *Store) pass(ctx context.Context, delayed bool) error {
	s.mu.Lock()
	gate, delay := s.gate, s.delay
	s.mu.Unlock()
	select {
	case <-gate:
	default:
		select {
		case <-gate:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
	if !delayed || delay <= 0 {
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// ended turns the end of a context into the contract's words.
func ended(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kvstore.ErrTimeout
	}
	return kvstore.ErrAborted
}

// decide asks the rules, then the hook.
func (s *Store) decide(op *kvstore.Op) (Action, error) {
	s.mu.Lock()
	a, err := s.match(target(op.Code), op)
	hook := s.hook
	s.mu.Unlock()
	if a == Pass && hook != nil {
		a, err = hook(op)
	}
	if a != Pass {
		s.counters.faults.Add(1)
	}
	return a, err
}

// call is decide for what is no block operation.
func (s *Store) call(t Target) (Action, error) {
	s.mu.Lock()
	a, err := s.match(t, nil)
	s.mu.Unlock()
	if a != Pass {
		s.counters.faults.Add(1)
	}
	return a, err
}

// Properties of the store below.
func (s *Store) Properties() kvstore.Properties { return s.inner.Properties() }

// Servers of the store below.
func (s *Store) Servers() []string { return s.inner.Servers() }

// Control returns the records of the store below, with faults.
func (s *Store) Control() kvstore.Control { return control{s, s.inner.Control()} }

// Join is handed on.
func (s *Store) Join(p kvstore.Placement) error { return s.inner.Join(p) }

// Channel opens a channel with faults.
func (s *Store) Channel(ctx context.Context) (kvstore.Channel, error) {
	inner, err := s.inner.Channel(ctx)
	if err != nil {
		return nil, err
	}
	return &channel{
		store: s,
		inner: inner,
		on:    make([]*kvstore.Op, 0, kvstore.MaxBatch),
		spoil: make([]spoiled, 0, kvstore.MaxBatch),
	}, nil
}

// CreateLayer is handed on.
func (s *Store) CreateLayer(ctx context.Context, layer kvstore.LayerID) error {
	return s.inner.CreateLayer(ctx, layer)
}

// RemoveLayer is handed on.
func (s *Store) RemoveLayer(ctx context.Context, layer kvstore.LayerID) error {
	return s.inner.RemoveLayer(ctx, layer)
}

// NextExtent is handed on.
func (s *Store) NextExtent(ctx context.Context, layer kvstore.LayerID, from uint64, data bool) (uint64, error) {
	return s.inner.NextExtent(ctx, layer, from, data)
}

// Allocated is handed on.
func (s *Store) Allocated(ctx context.Context, layer kvstore.LayerID) (uint64, error) {
	return s.inner.Allocated(ctx, layer)
}

// Usage is handed on.
func (s *Store) Usage(ctx context.Context) (kvstore.Usage, error) { return s.inner.Usage(ctx) }

// Inspect is handed on.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) { return s.inner.Inspect(ctx) }

// Silent is handed on.
func (s *Store) Silent(k kvstore.Key) bool { return s.inner.Silent(k) }

// AnySilent is handed on.
func (s *Store) AnySilent() bool { return s.inner.AnySilent() }

// Rewinds is handed on.
func (s *Store) Rewinds() uint64 { return s.inner.Rewinds() }

// Haunted is handed on: what is Late was not given up.
func (s *Store) Haunted(k kvstore.Key) bool { return s.inner.Haunted(k) }

// Locate is handed on.
func (s *Store) Locate(k kvstore.Key) kvstore.Location { return s.inner.Locate(k) }

// Close closes the store below.
func (s *Store) Close() error { return s.inner.Close() }
