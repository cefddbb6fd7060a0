package memcached

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
	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// garbage is what no memcached answers to what was asked.
var garbage = []string{
	"", "\n", "\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "ERROR\r\n", "SERVER_ERROR busy\r\n", "CLIENT_ERROR bad\r\n",
	"ERROR Too many open connections\r\n", "STORED", "STORED\n", "STORED\r\nSTORED\r\n", "DELETED\r\n", "VALUE\r\n",
	"VALUE x 1 4096\r\n" + strings.Repeat("x", 4096) + "\r\nEND\r\n",
	"VALUE KEY 1 99999999999999999999\r\n", "VALUE KEY 1 2147483647\r\n", "VALUE KEY 99999999999 4096\r\n",
	"VALUE KEY 1 4096\r\n" + strings.Repeat("y", 4096) + "no end",
	"VALUE KEY 1 -1\r\n", "VALUE KEY 1 4096 7\r\n", "VALUE KEY 1 4096 \r\n", "END\r\nEND\r\n",
	strings.Repeat("z", 100000), strings.Repeat("\x00", 3000) + "\r\n",
}

func TestGarbage(t *testing.T) {
	server := memcachedtest.Start(t)
	var turn atomic.Int64
	addr := wiretest.Between(t, func(_ int, c net.Conn) {
		n := int(turn.Add(1) - 1)
		if n%2 == 1 || n/2 >= len(garbage) {
			wiretest.Relay(c, server, func(w io.Writer, r io.Reader) { _, _ = io.Copy(w, r) })
			return
		}
		in := bufio.NewReader(c)
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		fmt.Fprint(c, strings.ReplaceAll(garbage[n/2], "KEY", keyText(key(1))))
	})
	good := channelOf(t, openUnproven(t, Config{}, server.Addr()))
	want(t, do1(t, good, write(1, kvstore.Any, block(1))), nil)
	s := openUnproven(t, Config{}, addr)
	for range garbage {
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
