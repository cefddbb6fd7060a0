package volume

import (
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestDeletionsPerServer: a batch of deletions is for one server, so that one that
// does not answer does not keep the claims of blocks on others.
func TestDeletionsPerServer(t *testing.T) {
	r := newRig(t, "mem3")
	r.create("v", 1<<30)
	v := r.open("v")
	r.write(v, 0, pattern(4<<20, 1))
	must(t, r.do(Request{Kind: Discard, Vol: v, N: 4 << 20}))
	seen := map[int]bool{}
	after := func(ops []*kvstore.Op) {
		if ops[0].Code != kvstore.Discard {
			return
		}
		server := r.pool.Server(ops[0].Key)
		seen[server] = true
		for _, op := range ops {
			if n := r.pool.Server(op.Key); n != server {
				t.Errorf("%s of server %d with blocks of server %d", op.Key, n, server)
			}
		}
	}
	r.store.after.Store(&after)
	r.reap(v)
	r.store.after.Store(nil)
	if len(seen) != 3 {
		t.Errorf("deletions on servers %v", seen)
	}
}
