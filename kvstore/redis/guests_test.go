package redis

import (
	"context"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// guestRig is a cluster of which a slot is on the way to a node that has nothing else, and
// where a block of this slot was written after it had left its own node.
type guestRig struct {
	c        *redistest.ClusterNodes
	from, to *redistest.Server
	replica  *redistest.Server // of to; nil: none
	slot     int
	s        *Store
	ch       kvstore.Channel
	book     wiretest.Logbook
	n        uint64 // the block
	old      string // what was stored of it before it was written last
}

func newGuestRig(t *testing.T, cfg Config, replicas int) *guestRig {
	r := &guestRig{c: redistest.Cluster(t, 2, replicas)}
	r.c.NoFailover()
	r.from, r.to = r.c.Servers[0], r.c.AddMaster(replicas)
	if replicas > 0 {
		r.replica = r.c.Servers[len(r.c.Servers)-1]
	}
	cfg.Mode, cfg.Log = Cluster, r.book.Log
	r.s = openUnproven(t, cfg, r.from.Addr())
	r.ch = channelOf(t, r.s)
	r.n, r.slot = onFirst()
	want(t, do1(t, r.ch, write(r.n, kvstore.Any, block(r.n))), nil)
	want(t, r.ch.Flush(bg(t), testLayer), nil)
	r.old = r.from.Do("GET", r.key()).(string)
	r.c.HalfMove(r.from, r.to, r.slot)
	want(t, do1(t, r.ch, write(r.n, kvstore.Any, block(r.n+1))), nil)
	return r
}

func (r *guestRig) key() string { k := blockKey(key(r.n)); return string(k) }

// undo has the node that the slot moves to have what it had before the last write.
func (r *guestRig) undo(t *testing.T) {
	_, err := r.to.Client.Pipelined(bg(t), func(p goredis.Pipeliner) error {
		p.Do(bg(t), "ASKING")
		p.Set(bg(t), r.key(), r.old, 0)
		return nil
	})
	want(t, err, nil)
}

func (r *guestRig) flush(t *testing.T, d time.Duration) error {
	ctx, cancel := context.WithTimeout(bg(t), d)
	defer cancel()
	return r.ch.Flush(ctx, testLayer)
}

// TestFlushOfAGuest: what an ASK led to a node is confirmed by its replicas, though the node
// has no slot; the flush leaves no key in the slot.
func TestFlushOfAGuest(t *testing.T) {
	r := newGuestRig(t, Config{WaitReplicas: 1}, 1)
	want(t, r.flush(t, 10*time.Second), nil)
	r.replica.Pause()
	want(t, do1(t, r.ch, write(r.n, kvstore.Any, block(r.n+2))), nil)
	if err := r.flush(t, time.Second); err == nil {
		t.Error("a flush succeeds that the only replica of what was written has not seen")
	}
	r.replica.Resume()
	want(t, r.flush(t, 10*time.Second), nil)
	if keys := r.to.Do("CLUSTER", "COUNTKEYSINSLOT", r.slot); keys != int64(1) {
		t.Errorf("%v keys in the slot, want the block alone", keys)
	}
	r.to.Do("CLUSTER", "SETSLOT", r.slot, "NODE", r.to.Do("CLUSTER", "MYID"))
	r.from.Do("CLUSTER", "SETSLOT", r.slot, "NODE", r.to.Do("CLUSTER", "MYID"))
	want(t, do1(t, r.ch, write(r.n, kvstore.Present, block(r.n+3))), nil)
	want(t, r.flush(t, 10*time.Second), nil)
	if n := r.s.lodged.Load(); n != 0 {
		t.Errorf("%d guests after the slot has arrived", n)
	}
}

// TestGuestGoesBackInTime: a node that a slot moves to loses what an ASK had led there.
func TestGuestGoesBackInTime(t *testing.T) {
	r := newGuestRig(t, Config{}, 0)
	want(t, r.flush(t, 10*time.Second), nil)
	r.undo(t)
	r.to.Do("DEBUG", "CHANGE-REPL-ID")
	want(t, r.flush(t, 10*time.Second), kvstore.ErrServerLost)
	if r.book.Count("it lacks the newest content of 1") != 1 {
		t.Errorf("log: %q", r.book.Lines())
	}
}

// TestGuestOfAnotherPast: the same, but nothing is lost: also what is with the slot's own
// node still is not missed.
func TestGuestOfAnotherPast(t *testing.T) {
	r := newGuestRig(t, Config{}, 0)
	r.c.MoveBack(r.from, r.to, r.slot)
	r.to.Do("CLUSTER", "SETSLOT", r.slot, "IMPORTING", r.from.Do("CLUSTER", "MYID"))
	r.from.Do("CLUSTER", "SETSLOT", r.slot, "MIGRATING", r.to.Do("CLUSTER", "MYID"))
	r.to.Do("DEBUG", "CHANGE-REPL-ID")
	want(t, r.flush(t, 10*time.Second), nil)
	if r.book.Count("it has all of the last 1 blocks") != 1 {
		t.Errorf("log: %q", r.book.Lines())
	}
}

// TestGuestMovesBack: a move is given up, and the node that it led to is gone: no flush
// waits for it, and the slot's own node shows that it has what had been written there.
func TestGuestMovesBack(t *testing.T) {
	movedBack(t, func(t *testing.T, r *guestRig, due error) {
		r.c.Forget(r.to)
		_ = r.flush(t, 20*time.Second) // before or after it is known that the guest is over
		redistest.Eventually(t, "the guest is over", func() bool { return r.s.lodged.Load() == 0 })
		want(t, r.flush(t, 20*time.Second), due)
		said := "it has all of the last 1"
		if due != nil {
			said = "lacks the newest content of 1"
		}
		if lines := strings.Join(r.book.Lines(), "; "); !strings.Contains(lines, said) {
			t.Errorf("log: %s", lines)
		}
	})
}

// movedBack gives the move up, once with all and once with what the block had before, and
// runs a test with what a flush must say of that.
func movedBack(t *testing.T, test func(t *testing.T, r *guestRig, due error)) {
	for name, due := range map[string]error{"whole": nil, "of before": kvstore.ErrServerLost} {
		t.Run(name, func(t *testing.T) {
			r := newGuestRig(t, Config{}, 0)
			if due != nil {
				r.undo(t)
			}
			r.c.MoveBack(r.from, r.to, r.slot)
			test(t, r, due)
		})
	}
}

// TestGuestGoesElsewhere: another node than the one that a slot moved to has it at last.
func TestGuestGoesElsewhere(t *testing.T) {
	r := newGuestRig(t, Config{}, 0)
	r.undo(t) // lost, and moved on like that
	third := r.c.Servers[1]
	r.c.MoveBack(r.from, r.to, r.slot)
	r.c.Move(r.from, third, r.slot, 1)
	want(t, do1(t, r.ch, read(r.n)), nil) // MOVED
	want(t, r.flush(t, 20*time.Second), kvstore.ErrServerLost)
}

// TestGuestTakesAnotherWay: a move is given up and another one begins before anybody has
// looked: no flush waits for the first one's node, which is gone, and what was lost with
// it is found.
func TestGuestTakesAnotherWay(t *testing.T) {
	movedBack(t, func(t *testing.T, r *guestRig, due error) {
		r.to.Stop()
		r.c.HalfMove(r.from, r.c.Servers[1], r.slot)
		_ = r.flush(t, 20*time.Second) // before or after it is known
		want(t, r.flush(t, 20*time.Second), due)
		if g := r.s.guests[r.slot].Load(); g == nil || g.node.addr != r.c.Servers[1].Addr() {
			t.Errorf("guest of %+v", g)
		}
	})
}

// TestGuestOfALook: what was moved to a node, and not written since, is missed too when that
// node goes back in time before the slot is its own.
func TestGuestOfALook(t *testing.T) {
	c := redistest.Cluster(t, 2, 0)
	s := openUnproven(t, Config{Mode: Cluster}, c.Servers[0].Addr())
	r := &guestRig{c: c, from: c.Servers[0], to: c.Servers[1], s: s, ch: channelOf(t, s)}
	r.n, r.slot = onFirst()
	want(t, do1(t, r.ch, write(r.n, kvstore.Any, block(r.n))), nil)
	r.old = r.from.Do("GET", r.key()).(string)
	want(t, do1(t, r.ch, write(r.n, kvstore.Any, block(r.n+1))), nil)
	for n := range uint64(32) { // the other node is met
		want(t, do1(t, r.ch, write(1000+n, kvstore.Any, block(n))), nil)
	}
	want(t, r.flush(t, 10*time.Second), nil)
	r.c.HalfMove(r.from, r.to, r.slot)
	r.undo(t)
	r.to.Do("DEBUG", "CHANGE-REPL-ID")
	want(t, r.flush(t, 20*time.Second), kvstore.ErrServerLost)
}

// TestGuestStays: a slot rests while its keys are on the way back: nobody is doubted for
// what is not there yet.
func TestGuestStays(t *testing.T) {
	r := newGuestRig(t, Config{}, 0)
	r.from.Do("CLUSTER", "SETSLOT", r.slot, "STABLE")
	for range 3 {
		r.s.lookNow(bg(t))
		want(t, r.flush(t, 10*time.Second), nil)
	}
	r.from.Do("DEBUG", "CHANGE-REPL-ID") // it is read back meanwhile
	want(t, r.flush(t, 10*time.Second), nil)
	r.c.MoveBack(r.from, r.to, r.slot)
	r.s.lookNow(bg(t))
	if n := r.s.lodged.Load(); n != 0 {
		t.Errorf("%d guests when all is over", n)
	}
	want(t, r.flush(t, 10*time.Second), nil)
	want(t, do1(t, r.ch, read(r.n)), nil)
}

// TestArrivedGuestMovesOn: a slot that has arrived and moves on, before anybody was told that it
// had arrived, is an ordinary move: nobody is read back.
func TestArrivedGuestMovesOn(t *testing.T) {
	r := newGuestRig(t, Config{}, 0)
	for _, s := range r.c.Servers {
		s.Do("CLUSTER", "SETSLOT", r.slot, "NODE", r.to.Do("CLUSTER", "MYID"))
	}
	third := r.c.Servers[1]
	r.s.lookNow(bg(t))
	r.c.HalfMove(r.to, third, r.slot)
	before := r.s.rewinds.Load()
	want(t, do1(t, r.ch, write(r.n, kvstore.Present, block(r.n+2))), nil)
	want(t, r.flush(t, 10*time.Second), nil)
	r.s.lookNow(bg(t))
	want(t, r.flush(t, 10*time.Second), nil)
	if g := r.s.guests[r.slot].Load(); g == nil || g.node.addr != third.Addr() {
		t.Errorf("guest of %+v", g)
	}
	if n := r.s.rewinds.Load() - before; n != 0 {
		t.Errorf("%d nodes were to show what they have", n)
	}
}
