package redis

import (
	"path/filepath"
	"strings"
	"testing"

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
