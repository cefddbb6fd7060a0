package memcached

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// answering is a server that answers the first line of each connection by f.
func answering(t *testing.T, f func(net.Conn)) (addr string) {
	t.Helper()
	return wiretest.Between(t, func(_ int, c net.Conn) {
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			f(c)
		}
	})
}

// TestForeignSentinel: another value in the sentinel's place is not ours, however long it
// is, when a connection begins and when a flush asks.
func TestForeignSentinel(t *testing.T) {
	p := wiretest.Spread{N: 1}
	name, value := p.Sentinel(0)
	for _, long := range []int{len(value), 5000, bufferSize - 20, bufferSize, 500000, 1 << 30} {
		t.Run(fmt.Sprint(long), func(t *testing.T) {
			foreign := func(c net.Conn) {
				fmt.Fprintf(c, "VALUE %s 0 %d\r\n%s\r\nEND\r\n", name, long, strings.Repeat("x", min(long, 500000)))
			}
			s := openAt(t, Config{}, answering(t, foreign))
			want(t, s.Join(p), nil)
			want(t, do1(t, channelOf(t, s), read(1)), kvstore.ErrServerLost)

			s = openAt(t, Config{}, wiretest.Between(t, func(_ int, c net.Conn) {
				in := bufio.NewReader(c)
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
				fmt.Fprintf(c, "VALUE %s 0 %d\r\n%s\r\nEND\r\n", name, len(value), value)
				if line, err := in.ReadString('\n'); err == nil && strings.HasPrefix(line, "get") {
					foreign(c)
				}
			}))
			want(t, s.Join(p), nil)
			s.servers[0].written.Store(true)
			want(t, channelOf(t, s).Flush(bg(t), testLayer), kvstore.ErrServerLost)
		})
	}
}
