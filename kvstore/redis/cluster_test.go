package redis

import (
	"bufio"
	"context"
	"io"
	"math"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
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
	ch.run(bg(t), false)
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
