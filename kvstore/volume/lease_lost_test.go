package volume

import (
	"errors"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/pool"
)

// TestFlushAfterLostLease: a holder whose lease somebody else took fails flushes
// too, also those that have nothing to store.
func TestFlushAfterLostLease(t *testing.T) {
	r := newRig(t, "mem")
	r.set.opt.Lease.TTL = 60 * time.Millisecond
	r.create("v", 1<<20)
	v := r.open("v")
	r.write(v, 0, pattern(4096, 1))
	r.flush(v)
	other, err := pool.Open(ctx, r.store, pool.Options{URL: "test:", StateDir: t.TempDir(), RuntimeDir: t.TempDir()})
	must(t, err)
	defer other.Close()
	must(t, other.Break(ctx, "v", true))
	r.inTime("the loss of the lease", func() {
		for !errors.Is(v.waitLease(ctx), pool.ErrHeld) {
			time.Sleep(time.Millisecond)
		}
	})
	if err := r.do(Request{Kind: Flush, Vol: v}); !errors.Is(err, pool.ErrHeld) {
		t.Errorf("a flush after the lease was lost: %v", err)
	}
	if err := r.do(Request{Kind: Write, Vol: v, Data: pattern(4096, 2)}); !errors.Is(err, pool.ErrHeld) {
		t.Errorf("a write after the lease was lost: %v", err)
	}
}
