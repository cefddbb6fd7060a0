package pool

import (
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A resumption that fails at any call leaves the holding that a crash left: the
// next try resumes it, so that nothing that was to be recovered is dropped.
func TestFailedResumption(t *testing.T) {
	for _, done := range []bool{false, true} {
		for n, over := 1, false; !over; n++ {
			st := newVolume(t, 1)
			opt := Options{RuntimeDir: t.TempDir()}
			p := open(t, newRig(st), opt)
			l := acquire(t, p, LeaseOptions{TTL: time.Hour})
			p.Close() // a crash
			r := newRig(st)
			p = open(t, r, opt)
			calls := 0
			fail := func(late bool) func(op, name string, server int) error {
				return func(op, name string, server int) error {
					if !late {
						calls++
					}
					if late == done && calls == n {
						return &kvstore.OpError{Op: op, Name: name, Server: "s", Err: kvstore.ErrClosed}
					}
					return nil
				}
			}
			r.hook(fail(false), fail(true))
			resume := LeaseOptions{TTL: time.Hour, Alone: true, Resume: true, Wait: -1}
			m, err := p.Acquire(t.Context(), "v", resume)
			r.hook(nil, nil)
			if over = err == nil; !over {
				m = acquire(t, p, resume)
			}
			if m.ID() != l.ID() || m.Generation() != l.Generation() {
				t.Fatalf("call %d failed (done: %v): then generation %d, not %d, or another holder", n, done, m.Generation(), l.Generation())
			}
			p.Close()
		}
	}
}
