package redis

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// garbage is what no Redis answers to what was asked.
var garbage = []string{
	"", "\n", "\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "-ERR unknown command\r\n", "-ERR max number of clients reached\r\n",
	"+OK", "+OK\n", "+OK\r\n+OK\r\n+OK\r\n+OK\r\n", ":1\r\n", ":99999999999999999999999\r\n", "$\r\n", "$-2\r\n", "$-1\r\n$-1\r\n$-1\r\n$-1\r\n",
	"$4108\r\n" + strings.Repeat("x", 4108) + "\r\n", "$99999999999999999999\r\n", "$536870913\r\n", "$4108\r\n" + strings.Repeat("y", 4108) + "no end",
	"*0\r\n", "*-1\r\n", "*5\r\n:1\r\n", "*2\r\n$1\r\nx\r\n", "-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n-LOADING\r\n", "-MOVED 1 \r\n", "-ASK 99999 x\r\n", "%1\r\n+a\r\n+b\r\n", "_\r\n",
	strings.Repeat("z", 100000), strings.Repeat("\x00", 3000) + "\r\n",
}

// TestGarbage: every other connection is answered with nonsense, some of it in place
// of the greeting, some behind a good one.
func TestGarbage(t *testing.T) {
	server := redistest.Start(t)
	var turn atomic.Int64
	addr := wiretest.Between(t, func(_ int, c net.Conn) {
		n := int(turn.Add(1) - 1)
		if n%2 == 1 || n/2 >= 2*len(garbage) {
			wiretest.Relay(c, server, func(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) })
			return
		}
		in := bufio.NewReader(c)
		if n/2 >= len(garbage) && !greetWell(in, c) {
			return
		}
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		fmt.Fprint(c, garbage[n/2%len(garbage)])
	})
	good := channelOf(t, openUnproven(t, Config{}, server.Addr()))
	want(t, do1(t, good, write(1, kvstore.Any, block(1))), nil)
	s := openUnprovenVia(t, addr, server)
	for range 2 * len(garbage) {
		ch := channelOf(t, s)
		r, v := read(1), read(1)
		v.Versioned = true
		ch.Do(bg(t), []*kvstore.Op{r, v})
		for _, op := range []*kvstore.Op{r, v} {
			// A block of a wrong length is a corrupt block, not garbage.
			if op.Err == nil && !bytes.Equal(op.Data, block(1)) {
				t.Fatal("garbage was taken for a block")
			}
		}
		want(t, do1(t, ch, write(2, kvstore.Any, block(2))), nil)
		wantBlock(t, ch, 2, block(2))
	}
}

// greetWell plays a server's part of the greeting without a sentinel.
func greetWell(in *bufio.Reader, c net.Conn) bool {
	// CLIENT SETNAME x, CLIENT ID, INFO replication: 7, 5 and 5 lines.
	for range 7 + 5 + 5 {
		if _, err := in.ReadString('\n'); err != nil {
			return false
		}
	}
	_, err := io.WriteString(c, "+OK\r\n:7\r\n$13\r\nrole:master\r\n\r\n")
	return err == nil
}
