package redis

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// TestRestartFromTheLog: a server that has its log comes back with all that it
// acknowledged, and that is found; flushes go on.
func TestRestartFromTheLog(t *testing.T) {
	server := redistest.Start(t, redistest.Log("everysec"))
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, server)
	ch := channelOf(t, s)
	for n := range uint64(100) {
		want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
	}
	want(t, do1(t, ch, discard(5)), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	for n := range uint64(20) {
		want(t, do1(t, ch, write(n, kvstore.Any, block(n+500))), nil)
	}
	server.Logged()
	server.Restart()
	for n := range uint64(20) {
		wantBlock(t, ch, n, block(n+500))
	}
	want(t, ch.Flush(bg(t), testLayer), nil)
	if book.Count("it has all of the last 100 blocks") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestServerMachineCrash: with everysec the last second of the log is in the page cache
// when the server's machine crashes. What it lacks then is found, though a flush had
// covered it, and nothing reads as what it never was.
func TestServerMachineCrash(t *testing.T) {
	server := redistest.Start(t, redistest.Log("everysec"))
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, server)
	ch := channelOf(t, s)
	for n := range uint64(50) {
		want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
	}
	want(t, ch.Flush(bg(t), testLayer), nil)
	crash := server.Synced()
	want(t, do1(t, ch, write(7, kvstore.Present, block(700))), nil)
	want(t, do1(t, ch, write(60, kvstore.Absent, block(60))), nil)
	want(t, ch.Flush(bg(t), testLayer), nil)
	crash()
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	for n := range uint64(50) {
		wantBlock(t, ch, n, block(n)) // 7 as it was acknowledged before
	}
	want(t, do1(t, ch, read(60)), kvstore.ErrAbsent)
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	if book.Count("lacks the newest content of 2,") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestRestartFromAnOldSnapshot: a server that comes back with old data keeps its
// sentinel. What it lacks is found, and no flush succeeds any more.
func TestRestartFromAnOldSnapshot(t *testing.T) {
	server := redistest.Start(t)
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	for n := range uint64(50) {
		want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
	}
	server.Do("SAVE")
	want(t, do1(t, other, write(7, kvstore.Present, block(700))), nil)
	want(t, do1(t, ch, write(60, kvstore.Absent, block(60))), nil)
	want(t, do1(t, ch, discard(9)), nil) // that it is back is no loss
	want(t, ch.Flush(bg(t), testLayer), nil)
	server.Restart()
	for range 2 {
		want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
		want(t, other.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	}
	wantBlock(t, ch, 8, block(8))
	want(t, do1(t, ch, read(60)), kvstore.ErrAbsent)
	if book.Count("lacks the newest content of 2,") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestThereAndBack: a master that became a replica of one that lacks the last writes, and
// a master again, over connections that stay open.
func TestThereAndBack(t *testing.T) {
	a := redistest.Start(t, redistest.TCP(), redistest.Args("--repl-diskless-sync-delay", "0"))
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, a)
	ch := channelOf(t, s)
	for n := range uint64(10) {
		want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
	}
	want(t, ch.Flush(bg(t), testLayer), nil)
	b := redistest.Start(t, redistest.TCP(), redistest.Args("--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+a.Port()))
	follows := func(s *redistest.Server) {
		redistest.Eventually(t, "a replica follows its master", func() bool { return s.Info("replication", "master_link_status") == "up" })
	}
	follows(b)
	// The first replica gave the master another id: nothing is lost.
	for range 2 {
		want(t, ch.Flush(bg(t), testLayer), nil)
	}
	if book.Count("it has all of the last 10 blocks") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
	b.Do("REPLICAOF", "NO", "ONE")
	want(t, do1(t, ch, write(7, kvstore.Present, block(700))), nil)
	a.Do("REPLICAOF", "127.0.0.1", b.Port())
	follows(a)
	a.Do("REPLICAOF", "NO", "ONE")
	for range 2 {
		want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
	}
	if book.Count("lacks the newest content of 1,") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestThereAndBackInACluster: the same while somebody else sees who serves: the next
// request already is preceded by a greeting.
func TestThereAndBackInACluster(t *testing.T) {
	c := redistest.Cluster(t, 1, 1)
	c.NoFailover()
	s := openUnproven(t, Config{Mode: Cluster}, c.Servers[0].Addr())
	ch := channelOf(t, s).(*channel)
	want(t, do1(t, ch, write(7, kvstore.Absent, block(7))), nil)
	c.Servers[0].Replicated()
	n := ch.conns[0].node
	takeOver := func(a, b *redistest.Server) {
		b.Do("CLUSTER", "FAILOVER", "TAKEOVER")
		redistest.Eventually(t, "the other one is a replica", func() bool {
			s.lookNow(bg(t))
			return a.Info("replication", "role") == "slave" && a.Info("replication", "master_link_status") == "up" && n.serves() == (b == c.Servers[0])
		})
	}
	takeOver(c.Servers[0], c.Servers[1])
	c.Servers[0].Do("CONFIG", "SET", "replica-read-only", "no")
	c.Servers[0].Do("FLUSHALL") // as if it had never got the block back
	takeOver(c.Servers[1], c.Servers[0])
	before := s.Rewinds()
	if id := ch.conns[0].id; ch.conns[0].state != ready || !strings.Contains(c.Servers[0].Do("CLIENT", "LIST").(string), fmt.Sprintf("id=%d ", id)) {
		t.Fatal("the connection did not stay open: no test")
	}
	want(t, do1(t, ch, read(7)), kvstore.ErrAbsent)
	if s.Rewinds() == before {
		t.Error("who keeps what he read was not told before the node was used")
	}
	want(t, ch.Flush(bg(t), testLayer), kvstore.ErrServerLost)
}

// TestReadBackIsAlone: while a node is read back nothing is written to it over the
// connections that are open, or what was written would be taken for a loss.
func TestReadBackIsAlone(t *testing.T) {
	server := redistest.Start(t)
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, server)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	want(t, do1(t, other, write(2, kvstore.Absent, block(2))), nil)
	gate := make(chan struct{})
	pass := sync.OnceFunc(func() { close(gate) })
	addr := wiretest.Between(t, func(_ int, c net.Conn) {
		wiretest.Relay(c, server, func(w io.Writer, r io.Reader) {
			<-gate
			_, _ = io.Copy(w, r)
		})
	})
	t.Cleanup(pass)
	n := (*s.nodes.Load())[0]
	want(t, n.admin.Close(), nil)
	n.admin = goredis.NewClient(s.options(addr))
	server.Do("DEBUG", "CHANGE-REPL-ID")
	flushed := make(chan error)
	go func() { flushed <- ch.Flush(bg(t), testLayer) }()
	redistest.Eventually(t, "the node is read back", func() bool { return s.Rewinds() > 0 })
	ctx, cancel := context.WithTimeout(bg(t), 300*time.Millisecond)
	defer cancel()
	w := write(2, kvstore.Present, block(3))
	other.Do(ctx, []*kvstore.Op{w})
	want(t, w.Err, kvstore.ErrTimeout)
	pass()
	want(t, <-flushed, nil)
	want(t, do1(t, other, w), nil)
	wantBlock(t, other, 2, block(3))
	want(t, ch.Flush(bg(t), testLayer), nil)
	if book.Count("it has all of the last 2 blocks") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestEraEndsBeforeSending: a write that a ledger did not have yet when the node's era
// ended is not sent on the connection of before.
func TestEraEndsBeforeSending(t *testing.T) {
	s := open(t, Config{}, redistest.Start(t))
	ch := channelOf(t, s).(*channel)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	c := ch.conns[0]
	id := c.id
	ctx, w, done := bg(t), write(1, kvstore.Present, block(2)), make(chan struct{})
	ch.log.mu.Lock()
	go func() {
		ch.Do(ctx, []*kvstore.Op{w})
		close(done)
	}()
	time.Sleep(100 * time.Millisecond) // until it waits for the ledger
	c.node.era.Add(1)
	ch.log.mu.Unlock()
	<-done
	want(t, w.Err, nil)
	if c.id == id {
		t.Error("it was sent on the connection of before")
	}
	wantBlock(t, ch, 1, block(2))
}

// TestLateAnswerOfTheOusted: the answer to a write comes when who took over was read back
// already, and may lack it: so the write is sent there too.
func TestLateAnswerOfTheOusted(t *testing.T) {
	first, second := redistest.Cluster(t, 1, 0).Servers[0], redistest.Cluster(t, 1, 0).Servers[0]
	var hold atomic.Bool
	held, gate := make(chan struct{}), make(chan struct{})
	pass := sync.OnceFunc(func() { close(gate) })
	addr := wiretest.Between(t, func(_ int, c net.Conn) {
		wiretest.Relay(c, first, func(w io.Writer, r io.Reader) {
			buf := make([]byte, bufferSize)
			for {
				n, err := r.Read(buf)
				if hold.CompareAndSwap(true, false) {
					close(held)
					<-gate
				}
				if _, bad := w.Write(buf[:n]); err != nil || bad != nil {
					return
				}
			}
		})
	})
	t.Cleanup(pass)
	s := clusterVia(t, addr, first)
	ch, other := channelOf(t, s), channelOf(t, s)
	want(t, do1(t, ch, write(1, kvstore.Absent, block(1))), nil)
	second.Do("SET", blockKey(key(1)), first.Do("GET", blockKey(key(1))))
	hold.Store(true)
	answered := make(chan error)
	go func() { answered <- do1(t, ch, write(1, kvstore.Present, block(2))) }()
	<-held
	first.Stop()
	s.redirected((*s.nodes.Load())[0], fmt.Appendf(nil, "MOVED %d %s", keySlot(blockKey(key(1))), second.Addr()))
	wantBlock(t, other, 1, block(1))
	pass()
	want(t, <-answered, nil)
	wantBlock(t, other, 1, block(2))
	want(t, ch.Flush(bg(t), testLayer), nil)
}

// TestOthersMayHaveWritten: what was written under a lease that has been given back is
// no longer compared: another machine may have written since.
func TestOthersMayHaveWritten(t *testing.T) {
	server := redistest.Start(t, redistest.Log("everysec"))
	var book wiretest.Logbook
	s := open(t, Config{Log: book.Log}, server)
	ch := channelOf(t, s)
	var fence kvstore.Fence
	fence.OpenForEver()
	for n := range uint64(10) {
		w := write(n, kvstore.Absent, block(n))
		w.Fence = &fence
		want(t, do1(t, ch, w), nil)
	}
	want(t, do1(t, ch, write(20, kvstore.Absent, block(20))), nil)
	fence.Close()
	for n := range uint64(10) {
		server.Do("SET", blockKey(key(n)), stored(key(n), 7, block(n+100))) // the other machine
	}
	server.Logged()
	server.Restart()
	wantBlock(t, ch, 5, block(105))
	want(t, ch.Flush(bg(t), testLayer), nil)
	if book.Count("it has all of the last 1 blocks") != 1 {
		t.Errorf("log: %q", book.Lines())
	}
}

// TestStrangerIsReadBack: who takes over in a cluster lives by a history that we never
// heard of. What it should have is read back all the same, in all slots that it has now,
// though a MOVED told of one.
func TestStrangerIsReadBack(t *testing.T) {
	for name, has := range map[string]bool{"it has all": true, "it has nothing": false} {
		t.Run(name, func(t *testing.T) {
			first, second := redistest.Cluster(t, 1, 0).Servers[0], redistest.Cluster(t, 1, 0).Servers[0]
			var book wiretest.Logbook
			s := openUnproven(t, Config{Mode: Cluster, Log: book.Log}, first.Addr())
			ch := channelOf(t, s)
			for n := range uint64(10) {
				want(t, do1(t, ch, write(n, kvstore.Absent, block(n))), nil)
				if has {
					second.Do("SET", blockKey(key(n)), first.Do("GET", blockKey(key(n))))
				}
			}
			want(t, ch.Flush(bg(t), testLayer), nil)
			first.Stop()
			s.looking.Store(math.MaxInt64 / 2) // nobody looks who has the other slots
			s.redirected((*s.nodes.Load())[0], fmt.Appendf(nil, "MOVED %d %s", keySlot(blockKey(key(1))), second.Addr()))
			before := s.Rewinds()
			lost, line := error(kvstore.ErrServerLost), "lacks the newest content of 10,"
			if has {
				lost, line = nil, "it has all of the last 10 blocks"
				wantBlock(t, ch, 1, block(1))
			} else {
				want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
			}
			if s.Rewinds() == before {
				t.Error("who keeps what he read was not told")
			}
			s.looking.Store(0)
			want(t, ch.Flush(bg(t), testLayer), lost)
			if book.Count(line) != 1 {
				t.Errorf("log: %q", book.Lines())
			}
		})
	}
}

// TestUnansweredDiscard: a change that got no answer may have been executed, or not; but one
// that was sent before another that was acknowledged is not what is there.
func TestUnansweredDiscard(t *testing.T) {
	s := &Store{histories: histories{ledgers: map[*ledger]struct{}{}}}
	n := &node{store: s}
	s.nodes.Store(&[]*node{n})
	l := s.openLedger()
	send := func(op *kvstore.Op, tag uint64, at int64) *request {
		r := &request{}
		r.begin(op, tag)
		r.node = n
		l.send(r, at)
		return r
	}
	check := func(r *request, good map[uint64]bool) {
		t.Helper()
		for tag, good := range good {
			if s.remembered(n)[r.key].has(tag) != good {
				t.Errorf("a block with tag %d (0: none) is as it must be: %v", tag, !good)
			}
		}
	}
	l.done(send(write(1, kvstore.Any, block(1)), 5, 1), entryDone)
	check(send(discard(1), 6, 2), map[uint64]bool{0: true, 5: true, 7: false})
	w := send(write(1, kvstore.Any, block(2)), 7, 3)
	check(w, map[uint64]bool{0: true, 5: true, 7: true, 8: false})
	send(write(1, kvstore.Any, block(3)), 8, 4)
	l.done(send(write(1, kvstore.Any, block(4)), 9, 5), entryDone)
	check(send(write(1, kvstore.Any, block(5)), 10, 6), map[uint64]bool{0: false, 5: false, 7: false, 8: false, 9: true, 10: true})
}

// TestTLS: all of the data path over TLS, with a password and an ACL user.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	server := redistest.Start(t, redistest.TCP())
	port := server.Port()
	for _, set := range [][]any{
		{"ACL", "SETUSER", "ann", "on", ">geheim", "~*", "+@all"},
		{"CONFIG", "SET", "tls-cert-file", filepath.Join(dir, "cert.pem"), "tls-key-file", filepath.Join(dir, "key.pem"),
			"tls-ca-cert-file", filepath.Join(dir, "cert.pem"), "tls-auth-clients", "no", "port", "0", "tls-port", port},
	} {
		server.Do(set...)
	}
	t.Setenv("KVBFS_REDIS_PASSWORD", "geheim")
	l, err := ParseURL("rediss://ann@127.0.0.1:" + port + "?ca=" + filepath.Join(dir, "cert.pem"))
	want(t, err, nil)
	want(t, l.Secrets(), nil)
	s := openStore(t, l.Config)
	ch := channelOf(t, s)
	wiretest.Exercise(t, ch, 40)
	var ops []*kvstore.Op
	for n := range uint64(kvstore.MaxBatch) {
		ops = append(ops, write(n, kvstore.Any, block(n)))
	}
	ch.Do(bg(t), ops)
	for i, op := range ops {
		want(t, op.Err, nil)
		if i%2 == 0 {
			ops[i] = read(op.Key.Number)
		}
	}
	ch.Do(bg(t), ops)
	for i, op := range ops {
		want(t, op.Err, nil)
		if i%2 == 0 && string(op.Data) != string(block(op.Key.Number)) {
			t.Fatalf("block %d differs", i)
		}
	}
	want(t, ch.Flush(bg(t), testLayer), nil)

	// A name that the certificate does not have, and a wrong password.
	wrong := l.Config
	wrong.TLS = l.TLS.Clone()
	wrong.TLS.ServerName = "elsewhere"
	if _, err := Open(bg(t), wrong); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("a certificate of another name: %v", err)
	}
	wrong = l.Config
	wrong.Password = "falsch"
	if _, err := Open(bg(t), wrong); err == nil || strings.Contains(err.Error(), "falsch") || !strings.Contains(err.Error(), "WRONGPASS") {
		t.Errorf("a wrong password: %v", err)
	}
}
