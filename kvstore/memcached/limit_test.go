package memcached

import (
	"bufio"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// occupied is a server whose connections are all taken, and what lets them go.
func occupied(t *testing.T, opts ...memcachedtest.Option) (server *memcachedtest.Server, free func()) {
	t.Helper()
	server = memcachedtest.Start(t, append(opts, memcachedtest.Args("-c", "20", "-t", "1"))...)
	var all []net.Conn
	free = func() {
		for _, c := range all {
			c.Close()
		}
		all = nil
	}
	t.Cleanup(free)
	for range 100 {
		c, err := net.Dial(server.Network(), server.Addr())
		want(t, err, nil)
		all = append(all, c)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = c.Write([]byte("version\r\n")) // fails if it was refused before
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line == tooMany+"\r\n" {
			return server, free
		}
	}
	t.Fatal("100 connections were taken")
	return nil, nil
}

// TestLimitOfConnectionsIsNoAnswer: a server that has no connection left for the question
// whether it dropped one proves nothing. It is waited for, and the log says so.
func TestLimitOfConnectionsIsNoAnswer(t *testing.T) {
	server, free := occupied(t, memcachedtest.TCP())
	var book wiretest.Logbook
	s := openUnproven(t, Config{Log: book.Log}, server.Addr())
	srv := s.servers[0]
	_, err := srv.lists(bg(t), map[int]bool{1: true})
	var said *serverError
	if err == nil || errors.As(err, &said) {
		t.Fatalf("%v is taken for an answer", err)
	}
	if srv.lives(bg(t)) {
		t.Error("a connection would be given up for another one that there is not")
	}
	drain := srv.exorcise(map[int]bool{1: true})
	for end := time.Now().Add(30 * time.Second); book.Count("asked whether it has dropped") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is waited for without a word: ", book.Lines())
		}
	}
	if drain.Done() {
		t.Error("the drain is over without an answer")
	}
	free()
	<-drain.Over()
	if book.Count("answers again") != 1 || book.Count("without proof") != 0 {
		t.Error(book.Lines())
	}
}
