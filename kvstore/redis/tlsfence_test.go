package redis

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
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
