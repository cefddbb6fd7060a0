package wiretest

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/awake"
)

// Numbers of blocks that lie on the first and the second of two servers.
const onFirst, onSecond = 0, 32

// PausedServerIsWaitedFor: a server that is stopped fails nothing, and the log tells of it once.
func PausedServerIsWaitedFor(t *testing.T, rig Rig) {
	for name, tcp := range map[string]bool{"unix": false, "tcp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := rig.Start(t, tcp)
			var book Logbook
			s := rig.open(t, Options{Log: book.Log, TryTimeout: 300 * time.Millisecond}, server)
			ch := ChannelOf(t, s)
			Want(t, Do1(t, ch, Write(1, kvstore.Any, Block(1))), nil)
			server.Pause()
			done := make(chan error)
			go func() {
				w := Write(1, kvstore.Present, Block(2))
				ch.Do(Background(t), []*kvstore.Op{w})
				done <- w.Err
			}()
			// The log tells of an outage that is a second old, at the end of a try.
			told := func() bool { return book.Count("does not answer") > 0 }
			began := time.Now()
			for after := time.Duration(0); after < 1500*time.Millisecond || !told() && after < time.Minute; after = time.Since(began) {
				select {
				case err := <-done:
					t.Fatalf("ended while the server was stopped: %v", err)
				case <-time.After(20 * time.Millisecond):
				}
			}
			server.Resume()
			Want(t, <-done, nil)
			WantBlock(t, ch, 1, Block(2))
			// Once, not once per try; on a loaded machine a later request may take
			// longer than a try, too.
			if n := book.Count("does not answer"); n < 1 || n > 2 || book.Count("answers again") != n {
				t.Errorf("log of the outage: %q", book.Lines())
			}
		})
	}
}

// ContextEndsAnOutage: a deadline and a cancelled context end a wait, with their own errors.
func ContextEndsAnOutage(t *testing.T, rig Rig) {
	server := rig.Start(t, false)
	s := rig.open(t, Options{}, server)
	ch := ChannelOf(t, s)
	Want(t, Do1(t, ch, Write(1, kvstore.Any, Block(1))), nil)
	server.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	defer cancel()
	w := Write(1, kvstore.Present, Block(2))
	ch.Do(ctx, []*kvstore.Op{w})
	Want(t, w.Err, kvstore.ErrTimeout)
	ctx, cancel = context.WithCancel(context.Background())
	time.AfterFunc(150*time.Millisecond, cancel)
	r := Read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	Want(t, r.Err, kvstore.ErrAborted)
	Want(t, ch.Flush(ctx, Layer), kvstore.ErrAborted)
	server.Resume()
	Want(t, Do1(t, ch, Read(1)), nil)
	Want(t, Do1(t, ch, Write(1, kvstore.Present, Block(3))), nil)
	WantBlock(t, ch, 1, Block(3))
}

// DeadServerIsWaitedFor: a server that is gone is waited for; control calls say so at once.
func DeadServerIsWaitedFor(t *testing.T, rig Rig) {
	server := rig.Start(t, true)
	s := rig.open(t, Options{}, server)
	ch := ChannelOf(t, s)
	Want(t, Do1(t, ch, Read(1)), kvstore.ErrAbsent)
	server.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	r := Read(1)
	ch.Do(ctx, []*kvstore.Op{r})
	Want(t, r.Err, kvstore.ErrTimeout)
	_, err := s.Control().Get(Background(t), 0, "a:b")
	Want(t, err, kvstore.ErrUnreachable)
	_, err = s.Usage(Background(t))
	Want(t, err, kvstore.ErrUnreachable)
}

// EmptiedServer: after a server came back empty all that asks for it fails for good.
func EmptiedServer(t *testing.T, rig Rig) {
	for _, tcp := range []bool{false, true} {
		good, bad := rig.Start(t, tcp), rig.Start(t, tcp)
		s := rig.open(t, Options{}, good, bad)
		ch := ChannelOf(t, s)
		// Block 0 is on the first server, block 32 on the second.
		for _, n := range []uint64{0, 32} {
			Want(t, Do1(t, ch, Write(n, kvstore.Absent, Block(n))), nil)
		}
		Want(t, ch.Flush(Background(t), Layer), nil)
		Want(t, Do1(t, ch, Write(32, kvstore.Present, Block(5))), nil)
		bad.Restart()
		ops := []*kvstore.Op{Read(0), Read(32), Write(33, kvstore.Absent, Block(1)), Discard(34)}
		ch.Do(Background(t), ops)
		Want(t, ops[0].Err, nil)
		for _, op := range ops[1:] {
			Want(t, op.Err, kvstore.ErrServerLost)
		}
		for range 2 {
			err := ch.Flush(Background(t), Layer)
			Want(t, err, kvstore.ErrServerLost)
			var op *kvstore.OpError
			if !errors.As(err, &op) || op.Server != bad.Addr() {
				t.Fatalf("which server: %v", err)
			}
		}
	}
}

// FenceClosesDuringOutage: a write that waits for a server must not be sent
// once its fence is closed.
func FenceClosesDuringOutage(t *testing.T, rig Rig) {
	server := rig.Start(t, false)
	ch := ChannelOf(t, rig.unproven(t, server))
	Want(t, Do1(t, ch, Read(1)), kvstore.ErrAbsent)
	server.Stop()
	var f kvstore.Fence
	f.OpenForEver()
	w := Write(1, kvstore.Any, Block(1))
	w.Fence = &f
	done := make(chan error)
	go func() {
		ch.Do(Background(t), []*kvstore.Op{w})
		done <- w.Err
	}()
	time.Sleep(50 * time.Millisecond)
	f.Close()
	server.Restart()
	Want(t, <-done, kvstore.ErrFenced)
	Want(t, Do1(t, ch, Read(1)), kvstore.ErrAbsent)
}

// NameMoves: a server whose name leads to another address is found there.
func NameMoves(t *testing.T, rig Rig) {
	server := rig.Start(t, true)
	s := rig.open(t, Options{}, server)
	// As if the name had led elsewhere when the store was opened: nobody listens
	// on port 1.
	var old unix.Sockaddr = &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}}
	rig.Move(s, old)
	Want(t, Do1(t, ChannelOf(t, s), Write(1, kvstore.Any, Block(1))), nil)
}

// TryLeavesASilentServer: a server that is silent is left; what the other one answers is there at once.
func TryLeavesASilentServer(t *testing.T, rig Rig) {
	servers := []Server{rig.Start(t, true), rig.Start(t, true)}
	s := rig.open(t, Options{}, servers...)
	ch := ChannelOf(t, s)
	const a, b = onFirst, onSecond
	Want(t, Do1(t, ch, Write(a, kvstore.Any, Block(1))), nil)
	Want(t, Do1(t, ch, Write(b, kvstore.Any, Block(2))), nil)
	var ra, wb *kvstore.Op
	for try := 0; ; try++ {
		servers[1].Pause()
		ra, wb = Read(a), Write(b, kvstore.Present, Block(3))
		if ch.Try(Background(t), []*kvstore.Op{ra, wb}) {
			t.Fatalf("Try has all results while a server is stopped: %v, %v", ra.Err, wb.Err)
		}
		if !errors.Is(ra.Err, kvstore.ErrPending) || try == 20 {
			break
		}
		// On a loaded machine the other server may be late as well: both are silent
		// then. What comes late makes the store more patient the next time.
		servers[1].Resume()
		ch.Finish(Background(t))
	}
	Want(t, ra.Err, nil)
	Want(t, wb.Err, kvstore.ErrPending)
	if string(ra.Data) != string(Block(1)) {
		t.Error("the block of the server that answers is wrong")
	}
	if !s.AnySilent() || s.Silent(ra.Key) || !s.Silent(wb.Key) {
		t.Errorf("silent: any %v, of a %v, of b %v", s.AnySilent(), s.Silent(ra.Key), s.Silent(wb.Key))
	}
	done := make(chan struct{})
	go func() { ch.Finish(Background(t)); close(done) }()
	select {
	case <-done:
		t.Fatal("Finish returned while the server is stopped")
	case <-time.After(100 * time.Millisecond):
	}
	if n := awake.Working(); n != 0 {
		t.Errorf("%d at work though all wait for a stopped server: others would never stay awake", n)
	}
	servers[1].Resume()
	<-done
	Want(t, wb.Err, nil)
	if s.AnySilent() {
		t.Error("silent though it answered")
	}
	WantBlock(t, ch, b, Block(3))
}

// TryGoesOn: of what Try has left each has its result when its own server answers, whatever
// the other one does.
func TryGoesOn(t *testing.T, rig Rig) {
	servers := []Server{rig.Start(t, true), rig.Start(t, true)}
	// So that it is not a new connection that brings the answer.
	s := rig.open(t, Options{TryTimeout: time.Minute}, servers...)
	ch := ChannelOf(t, s)
	const a, b = onFirst, onSecond
	for _, n := range []uint64{a, b} {
		Want(t, Do1(t, ch, Write(n, kvstore.Any, Block(1))), nil)
	}
	for late := range servers {
		for _, server := range servers {
			server.Pause()
		}
		ops := []*kvstore.Op{Write(a, kvstore.Present, Block(2)), Read(b)}
		if ch.Try(Background(t), ops) {
			t.Fatalf("Try has all results while all are stopped: %v, %v", ops[0].Err, ops[1].Err)
		}
		if ch.Try(Background(t), nil) {
			t.Fatalf("Try goes on with all results while all are stopped: %v, %v", ops[0].Err, ops[1].Err)
		}
		if n := awake.Working(); n != 0 {
			t.Errorf("%d at work though all wait for stopped servers", n)
		}
		servers[late].Resume()
		end := time.Now().Add(30 * time.Second)
		for ops[late].Err != nil && time.Now().Before(end) {
			if ch.Try(Background(t), nil) {
				t.Fatalf("Try has all results while a server is stopped: %v, %v", ops[0].Err, ops[1].Err)
			}
		}
		Want(t, ops[late].Err, nil)
		Want(t, ops[1-late].Err, kvstore.ErrPending)
		servers[1-late].Resume()
		for !ch.Try(Background(t), nil) {
			if time.Now().After(end) {
				t.Fatal("Try does not come to an end")
			}
		}
		Want(t, ops[1-late].Err, nil)
		WantBlock(t, ch, a, Block(2))
		WantBlock(t, ch, b, Block(1))
	}
}

// FlushAfterTry: what Try has stored is covered by a flush of another channel at once,
// though the batch is not over. It is the first change that the server sees.
func FlushAfterTry(t *testing.T, rig Rig) {
	servers := []Server{rig.Start(t, true), rig.Start(t, true)}
	s := rig.open(t, Options{}, servers...)
	ch, other := ChannelOf(t, s), ChannelOf(t, s)
	Want(t, Do1(t, other, Read(onFirst)), kvstore.ErrAbsent) // it is connected
	var a, b *kvstore.Op
	for try := 0; ; try++ {
		servers[1].Pause()
		a, b = Write(onFirst, kvstore.Any, Block(1)), Write(onSecond, kvstore.Any, Block(2))
		if ch.Try(Background(t), []*kvstore.Op{a, b}) {
			t.Fatalf("Try has all results while a server is stopped: %v, %v", a.Err, b.Err)
		}
		if a.Err == nil {
			break
		}
		servers[1].Resume()
		ch.Finish(Background(t))
		if try == 20 {
			t.Fatalf("the server that answers was late each time: %v", a.Err)
		}
	}
	servers[0].Restart()
	Want(t, other.Flush(Background(t), Layer), kvstore.ErrServerLost)
	servers[1].Resume()
	ch.Finish(Background(t))
}

// TryLeavesADeadServer: a server that is dead is left too, and what became of it is found out.
func TryLeavesADeadServer(t *testing.T, rig Rig) {
	servers := []Server{rig.Start(t, true), rig.Start(t, true)}
	s := rig.open(t, Options{}, servers...)
	ch := ChannelOf(t, s)
	const a, b = onFirst, onSecond
	Want(t, Do1(t, ch, Write(a, kvstore.Any, Block(1))), nil)
	servers[1].Stop()
	rb := Read(b)
	if ch.Try(Background(t), []*kvstore.Op{Read(a), rb}) {
		t.Fatalf("Try has all results while a server is gone: %v", rb.Err)
	}
	servers[1].Restart()
	ch.Finish(Background(t))
	Want(t, rb.Err, kvstore.ErrServerLost)
	if s.AnySilent() {
		t.Error("silent though it answered")
	}
}
