package redis

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// TestFenceHoldsCiphertext: what is enciphered and waits for the socket does not leave
// after the lease ended.
func TestFenceHoldsCiphertext(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	want(t, err, nil)
	text, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	want(t, err, nil)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)

	readOn, got := make(chan struct{}), make(chan int64, 1)
	addr := wiretest.Between(t, func(n int, c net.Conn) {
		c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
		in := bufio.NewReader(c)
		if !greetWell(in, c) {
			return
		}
		if n == 0 { // a GET, then nothing is read for a while
			for range 5 {
				_, _ = in.ReadString('\n')
			}
			_, _ = io.WriteString(c, "$-1\r\n")
			<-readOn
		}
		k, _ := io.Copy(io.Discard, in)
		if n == 0 {
			got <- k
		}
	})
	s := openUnproven(t, Config{}, redistest.Start(t).Addr()) // which says that connections are drained
	s.cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12}
	dialTo(s, &unix.SockaddrUnix{Name: addr})

	const writes, perWrite = 200, valueSize + 200
	var fence kvstore.Fence
	fence.OpenForEver()
	var ops []*kvstore.Op
	for n := range uint64(writes) {
		w := write(n, kvstore.Any, block(n))
		w.Fence = &fence
		ops = append(ops, w)
	}
	ch := channelOf(t, s).(*channel)
	want(t, do1(t, ch, read(1)), kvstore.ErrAbsent)
	c := ch.conns[0]
	want(t, unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 16<<10), nil)
	if ch.Try(bg(t), ops) {
		t.Fatal("a server that reads nothing has answered")
	}
	if c.state != ready || !c.link.unsent() {
		t.Fatalf("state %v, unsent %v: no test", c.state, c.link.unsent())
	}
	left := len(c.link.(*secured).raw.out)
	fence.Close()
	close(readOn)
	ch.Finish(bg(t))
	for _, op := range ops {
		want(t, op.Err, kvstore.ErrFenced)
	}
	if n := <-got; n > int64(writes*perWrite-left) {
		t.Errorf("%d bytes of writes arrived, though %d were unsent when the lease ended", n, left)
	}
}

// TestHandshakeEnds: a handshake whose time is over ends, though its server drips bytes.
func TestHandshakeEnds(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	want(t, err, nil)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	_, err = unix.Write(pair[1], make([]byte, 1))
	want(t, err, nil)
	ctx, cancel := context.WithCancel(bg(t))
	cancel()
	c := &rawConn{fd: pair[0], ctx: ctx}
	_, err = c.Read(make([]byte, 1))
	want(t, err, context.Canceled)
	_, err = c.Write(make([]byte, 1))
	want(t, err, context.Canceled)
}

// TestHandshakeClosesOnce: the store is closed during a handshake. Who has the number of
// its socket next keeps it.
func TestHandshakeClosesOnce(t *testing.T) {
	s := &Store{cfg: Config{TLS: &tls.Config{MinVersion: tls.VersionTLS12}, TryTimeout: time.Minute}, helpers: wire.NewHelpers(t.Logf)}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	want(t, err, nil)
	defer unix.Close(pair[1])
	// The handshake notices late that it is over.
	want(t, unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 500_000}), nil)
	h := (&node{store: s, addr: "127.0.0.1:1"}).startTLS(pair[0])
	_, err = unix.Read(pair[1], make([]byte, 1)) // of the hello
	want(t, err, nil)
	go s.helpers.Close()
	number := -1
	for end := time.Now().Add(10 * time.Second); number != pair[0]; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("the socket stays open")
		}
		if number >= 0 {
			unix.Close(number)
		}
		number, err = unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD_CLOEXEC, pair[0])
		want(t, err, nil)
	}
	<-h.over
	if _, err := unix.FcntlInt(uintptr(number), unix.F_GETFD, 0); err != nil {
		t.Errorf("a file with the number that the socket had was closed: %v", err)
	}
	unix.Close(number)
}
