package redis

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// TestRefusedAsking: the answer to a command whose ASKING was refused is not taken for
// the answer to the next command.
func TestRefusedAsking(t *testing.T) {
	server := redistest.Cluster(t, 1, 0).Servers[0]
	addr := wiretest.Between(t, func(n int, c net.Conn) {
		if n > 0 {
			wiretest.Relay(c, server, func(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) })
			return
		}
		in := bufio.NewReader(c)
		if !greetWell(in, c) {
			return
		}
		_, _ = io.CopyN(io.Discard, in, 3*valueSize)
		// To ASKING, and to three times SET.
		_, _ = io.WriteString(c, "-BUSY wait\r\n-BUSY wait\r\n+OK\r\n-OOM no\r\n")
		_, _ = io.Copy(io.Discard, in)
	})
	s := clusterVia(t, addr, server)
	ch := channelOf(t, s).(*channel)
	ops := []*kvstore.Op{write(1, kvstore.Any, block(1)), write(2, kvstore.Any, block(2)), write(3, kvstore.Any, block(3))}
	ch.begin(bg(t), ops)
	ch.requests[0].asking = true
	ch.run(bg(t), wire.Stays)
	ch.settleNodes()
	for i, op := range ops {
		want(t, op.Err, nil)
		wantBlock(t, ch, uint64(i+1), block(uint64(i+1)))
	}
}

// clusterVia opens a cluster of one node whose data connections go to addr, which
// stands before it.
func clusterVia(t *testing.T, addr string, server *redistest.Server) *Store {
	t.Helper()
	s := openUnproven(t, Config{Mode: Cluster}, server.Addr())
	dialTo(s, &unix.SockaddrUnix{Name: addr})
	return s
}

// ends is a context that ends when it is asked for and over is true.
type ends struct {
	context.Context
	over func() bool
}

func (e ends) Err() error {
	if e.over() {
		return context.Canceled
	}
	return e.Context.Err()
}

// TestFlushAsksWhoServes: a node whose slots are elsewhere before its flush ended does
// not speak for them: who has them now is asked, and there is no success without that.
func TestFlushAsksWhoServes(t *testing.T) {
	for name, answers := range map[string]bool{"it answers": true, "it breaks off": false} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Cluster(t, 1, 0).Servers[0]
			var move atomic.Pointer[func()]
			addr := wiretest.Between(t, func(_ int, c net.Conn) {
				wiretest.Relay(c, server, func(w io.Writer, r io.Reader) {
					buf := make([]byte, bufferSize)
					for {
						n, err := r.Read(buf)
						if f := move.Load(); f != nil {
							(*f)()
							if !answers {
								return
							}
						}
						if _, bad := w.Write(buf[:n]); err != nil || bad != nil {
							return
						}
					}
				})
			})
			s := clusterVia(t, addr, server)
			ch := channelOf(t, s).(*channel)
			want(t, do1(t, ch, write(1, kvstore.Any, block(1))), nil)
			other, err := s.nodeAt(bg(t), "127.0.0.1:1") // nobody listens there
			want(t, err, nil)
			s.looking.Store(math.MaxInt64 / 2) // nobody looks what is true
			f := func() {
				for i := range s.slots {
					s.slots[i].Store(other)
				}
			}
			move.Store(&f)
			ctx := ends{bg(t), func() bool {
				for _, r := range ch.requests {
					if r.node == other {
						return true
					}
				}
				return ch.unserved
			}}
			want(t, ch.Flush(ctx, testLayer), kvstore.ErrAborted)
		})
	}
}

// standIn adds a node to a cluster whose data connections go to addr, and gives it all
// slots; nobody else knows of it.
func standIn(t *testing.T, s *Store, addr string) {
	t.Helper()
	n, err := s.nodeAt(bg(t), "127.0.0.1:1") // nobody listens there
	want(t, err, nil)
	at := unix.Sockaddr(&unix.SockaddrUnix{Name: addr})
	n.where.At.Store(&at)
	for i := range s.slots {
		s.slots[i].Store(n)
	}
}

// TestRefusedGoesElsewhere: a node that answers and cannot serve, as it is cut off from
// its cluster, does not keep what another one has by now.
func TestRefusedGoesElsewhere(t *testing.T) {
	server := redistest.Cluster(t, 1, 0).Servers[0]
	s := openUnproven(t, Config{Mode: Cluster}, server.Addr())
	s.cfg.WaitReplicas = 1
	s.looking.Store(math.MaxInt64 / 2) // the map is as the test says
	serves := (*s.nodes.Load())[0]
	addr := wiretest.Between(t, func(_ int, c net.Conn) {
		in := bufio.NewReader(c)
		if !greetWell(in, c) {
			return
		}
		for {
			line, err := in.ReadString('\n')
			answer := ""
			switch {
			case err != nil:
				return
			case line == "GET\r\n":
				answer = "-CLUSTERDOWN The cluster is down\r\n"
			case line == "replication\r\n": // a flush: its mark, no replica, the history
				answer = ":1\r\n:0\r\n$13\r\nrole:master\r\n\r\n"
			default:
				continue
			}
			for i := range s.slots {
				s.slots[i].Store(serves)
			}
			_, _ = io.WriteString(c, answer)
		}
	})
	t.Run("an operation", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
		defer cancel()
		server.Do("SET", blockKey(key(1)), stored(key(1), 7, block(1)))
		standIn(t, s, addr)
		r := read(1)
		channelOf(t, s).Do(ctx, []*kvstore.Op{r})
		want(t, r.Err, nil)
	})
	t.Run("a flush", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
		defer cancel()
		s.servers[0].written.Store(true)
		standIn(t, s, addr)
		ch := channelOf(t, s).(*channel)
		// It ends when the node is found not to serve: who does has no replica.
		want(t, ch.Flush(ends{ctx, func() bool { return ch.unserved }}, testLayer), kvstore.ErrAborted)
	})
}

// TestHalfMovedSlot: while the keys of a slot are on another node already, the one that
// still has the slot proves itself, and is flushed, by keys of its other slots.
func TestHalfMovedSlot(t *testing.T) {
	c := redistest.Cluster(t, 2, 1)
	c.NoFailover()
	proven := openStore(t, Config{Mode: Cluster, Servers: c.Addrs()[:1]})
	waits := openUnproven(t, Config{Mode: Cluster, WaitReplicas: 1}, c.Servers[0].Addr())
	for _, slot := range []int{0, copyEvery} {
		c.HalfMove(c.Servers[0], c.Servers[1], slot)
	}
	for name, s := range map[string]*Store{"sentinel": proven, "mark of a flush": waits} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
			defer cancel()
			ch := channelOf(t, s)
			var ops []*kvstore.Op
			for n := range uint64(32) {
				ops = append(ops, write(n, kvstore.Any, block(n)))
			}
			ch.Do(ctx, ops)
			for _, op := range ops {
				want(t, op.Err, nil)
			}
			want(t, ch.Flush(ctx, testLayer), nil)
		})
	}
}

// TestReadBackOfAHalfMovedSlot: a node is read back though some of its blocks are on
// another one already.
func TestReadBackOfAHalfMovedSlot(t *testing.T) {
	c := redistest.Cluster(t, 2, 0)
	var book wiretest.Logbook
	s := openUnproven(t, Config{Mode: Cluster, Log: book.Log}, c.Servers[0].Addr())
	ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
	defer cancel()
	ch := channelOf(t, s)
	n, slot := onFirst()
	want(t, do1(t, ch, write(n, kvstore.Any, block(n))), nil)
	c.HalfMove(c.Servers[0], c.Servers[1], slot)
	c.Servers[0].Do("DEBUG", "CHANGE-REPL-ID")
	want(t, ch.Flush(ctx, testLayer), nil)
	if book.Count("it has all of the last 1 blocks") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// onFirst returns the number of a block whose slot the first of two nodes has.
func onFirst() (n uint64, slot int) {
	for keySlot(blockKey(key(n))) >= slotCount/2 {
		n++
	}
	return n, keySlot(blockKey(key(n)))
}

// TestAskOfANewNode: an ASK leads to a node that this channel has no connection to.
func TestAskOfANewNode(t *testing.T) {
	c := redistest.Cluster(t, 2, 0)
	s := openUnproven(t, Config{Mode: Cluster}, c.Servers[0].Addr())
	ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
	defer cancel()
	ch := channelOf(t, s)
	n, slot := onFirst()
	want(t, do1(t, ch, write(n, kvstore.Any, block(n))), nil)
	c.HalfMove(c.Servers[0], c.Servers[1], slot)
	for _, op := range []*kvstore.Op{read(n), write(n, kvstore.Present, block(n+1)), discard(n)} {
		ch.Do(ctx, []*kvstore.Op{op})
		want(t, op.Err, nil)
	}
}

// TestAskOfANodeThatIsAway: where an ASK leads nobody serves, or a broken connection is not
// known to be done with. The slot's own node is asked again, which keeps the slot at last.
func TestAskOfANodeThatIsAway(t *testing.T) {
	for name, haunted := range map[string]bool{"it hangs up": false, "it is haunted": true} {
		t.Run(name, func(t *testing.T) {
			c := redistest.Cluster(t, 2, 0)
			from, to := c.Servers[0], c.Servers[1]
			var asks, dials atomic.Int64
			via := wiretest.Between(t, func(_ int, c net.Conn) {
				wiretest.Relay(c, from, func(w io.Writer, r io.Reader) { countAsks(&asks, w, r) })
			})
			s := clusterVia(t, via, from)
			away := unix.Sockaddr(&unix.SockaddrUnix{Name: wiretest.Between(t, func(int, net.Conn) { dials.Add(1) })})
			(*s.nodes.Load())[1].where.At.Store(&away)
			ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
			defer cancel()
			ch := channelOf(t, s).(*channel)
			if haunted {
				ch.conns[1].haunt = wire.NewDrain(s.helpers, func(ctx context.Context) { <-ctx.Done() })
			}
			n, slot := onFirst()
			want(t, do1(t, ch, write(n, kvstore.Any, block(n))), nil)
			c.HalfMove(from, to, slot)
			w, done := write(n, kvstore.Any, block(n)), make(chan struct{})
			go func() {
				ch.Do(ctx, []*kvstore.Op{w})
				close(done)
			}()
			redistest.Eventually(t, "the slot's own node is asked again", func() bool { return asks.Load() > 2 || ctx.Err() != nil })
			from.Do("CLUSTER", "SETSLOT", slot, "STABLE")
			<-done
			want(t, w.Err, nil)
			if more := asks.Load() - dials.Load(); !haunted && (more < -1 || more > 1) {
				t.Errorf("asked %d times, and dialled %d times: not one after the other", asks.Load(), dials.Load())
			}
			if ch.conns[1].troubled.IsZero() {
				t.Error("it cannot be used since a time that nobody kept")
			}
		})
	}
}

// TestNodesThatNameEachOther: two nodes of which each says that the other one has a slot
// are not asked in a tight loop.
func TestNodesThatNameEachOther(t *testing.T) {
	c := redistest.Cluster(t, 2, 0)
	from, to := c.Servers[0], c.Servers[1]
	var asks atomic.Int64
	via := wiretest.Between(t, func(_ int, c net.Conn) {
		wiretest.Relay(c, from, func(w io.Writer, r io.Reader) { countAsks(&asks, w, r) })
	})
	s := clusterVia(t, via, from)
	ctx, cancel := context.WithTimeout(bg(t), 10*time.Second)
	defer cancel()
	ch := channelOf(t, s)
	n, slot := onFirst()
	want(t, do1(t, ch, write(n, kvstore.Any, block(n))), nil)
	c.HalfMove(from, to, slot)
	to.Do("CLUSTER", "SETSLOT", slot, "STABLE") // it imports no more, and says MOVED
	w, done := write(n, kvstore.Any, block(n)), make(chan struct{})
	go func() {
		ch.Do(ctx, []*kvstore.Op{w})
		close(done)
	}()
	redistest.Eventually(t, "they name each other", func() bool { return asks.Load() > 2 || ctx.Err() != nil })
	time.Sleep(300 * time.Millisecond) // enough for thousands
	if n := asks.Load(); n > 300 {
		t.Errorf("asked %d times within a moment", n)
	}
	from.Do("CLUSTER", "SETSLOT", slot, "STABLE")
	<-done
	want(t, w.Err, nil)
}

// TestRest: a pause that a refusal brought is over with the next result, of whatever kind,
// and does not concern what is in flight.
func TestRest(t *testing.T) {
	server := redistest.Start(t)
	s := openUnproven(t, Config{}, server.Addr())
	ch := channelOf(t, s).(*channel)
	for n := range uint64(4) {
		want(t, do1(t, ch, write(n, kvstore.Any, block(n))), nil)
	}
	c := ch.conns[0]
	c.restSince = time.Now().Add(-time.Hour)
	ch.Do(bg(t), []*kvstore.Op{read(1), read(2), read(3)})
	if !c.restSince.IsZero() {
		t.Error("it gave results, and is said to have been refused since an hour")
	}
	server.Pause()
	if ch.Try(bg(t), []*kvstore.Op{read(1)}) {
		t.Fatal("a stopped server answered")
	}
	c.restUntil = time.Now().Add(-time.Second) // of a request that another node has by now
	c.idle = time.Now().Add(-time.Minute)
	if !ch.silent(time.Now()) {
		t.Error("it is not silent, though what is in flight has no answer since a minute")
	}
	if _, limit := c.waitsFor(time.Now()); limit < slice {
		t.Errorf("looks again after %v, with nothing to send", limit)
	}
	server.Resume()
	ch.Finish(bg(t))
}

// countAsks relays what a node says and counts its ASKs.
func countAsks(asks *atomic.Int64, w io.Writer, r io.Reader) {
	buf := make([]byte, bufferSize)
	for {
		n, err := r.Read(buf)
		asks.Add(int64(bytes.Count(buf[:n], []byte("-ASK "))))
		if _, bad := w.Write(buf[:n]); err != nil || bad != nil {
			return
		}
	}
}

// TestAbandonWhatMovedOn: a write that was sent to one node, whose connection broke, and
// waits for another one when its time runs out may still be executed by the first:
// nobody sends it a change until it is done with that connection.
func TestAbandonWhatMovedOn(t *testing.T) {
	c := redistest.Cluster(t, 2, 0)
	s := openUnproven(t, Config{Mode: Cluster}, c.Servers[0].Addr())
	ch := channelOf(t, s).(*channel)
	redistest.Eventually(t, "what a dead process left is drained", func() bool { return !s.helpers.Holding() })
	r := &request{op: write(1, kvstore.Any, block(1)), step: stepSet, node: ch.conns[0].node, repeated: true}
	ch.active, ch.pending = ch.conns[:2], 1
	ch.conns[0].queue.Push(r)
	over := make(chan struct{})
	ch.conns[1].haunt = wire.NewDrain(s.helpers, func(context.Context) { <-over })
	ch.abandon(kvstore.ErrTimeout)
	want(t, r.op.Err, kvstore.ErrTimeout)
	if !ch.conns[1].node.holds.Any() || ch.conns[0].node.holds.Any() {
		t.Error("the node that may still execute a write is not left alone, or the other one is")
	}
	close(over)
	redistest.Eventually(t, "changes go on", func() bool { return !ch.conns[1].node.holds.Any() })
}
