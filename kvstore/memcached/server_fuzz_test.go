package memcached

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire/wiretest"
)

// FuzzServer is a server that answers a batch with whatever the fuzzer says, cut into
// pieces as it says, and then ends the connection. No answer may bring the client
// down, make it take a block that is not one, or keep it once its time is over.
func FuzzServer(f *testing.F) {
	good := block(1)
	value := append([]byte("VALUE "+keyText(key(1))+" "), []byte("2147483648 4096\r\n")...)
	f.Add([]byte("STORED\r\nDELETED\r\nEND\r\n"), byte(3))
	f.Add([]byte("NOT_STORED\r\nNOT_FOUND\r\n"), byte(200))
	f.Add(append(append(append([]byte("STORED\r\nDELETED\r\n"), value...), good...), "\r\nEND\r\n"...), byte(60))
	f.Add(append(value, good...), byte(1))
	f.Add([]byte("STORED\r\nDELETED\r\nVALUE x 1 1048576\r\n"), byte(9))
	f.Add([]byte("SERVER_ERROR out of memory storing object\r\nERROR\r\n"), byte(0))
	name, sentinel := wiretest.Spread{N: 1}.Sentinel(0)
	asked := fmt.Sprintf("VALUE %s 0 ", name) // begins the answer of a server that is asked who it is
	proof := fmt.Sprintf("%s%d\r\n%s\r\nEND\r\n", asked, len(sentinel), sentinel)
	f.Add([]byte(proof+"STORED\r\nDELETED\r\n"), byte(0))
	f.Add([]byte(proof+string(value)+string(good)+"\r\nEND\r\n"), byte(1))
	f.Add([]byte(asked+"500000\r\nx"), byte(50))
	// Shared by all executions: to make them takes longer than to use them.
	in, scratch, vectors := make([]byte, bufferSize), make([]byte, 0, scratchSize), make([]unix.Iovec, 0, maxVectors)
	w, d, r, v := write(2, kvstore.Any, block(2)), discard(3), read(1), read(1)
	v.Versioned = true
	f.Fuzz(func(t *testing.T, answer []byte, piece byte) {
		if len(answer) > 4*kvstore.BlockSize {
			return
		}
		// From one byte at a time to all at once.
		network := &script{answer: answer, piece: 1 + int(piece)*int(piece)/4}
		network.clock.Context = t.Context()
		s, err := Open(t.Context(), Config{Servers: []string{"127.0.0.1:1"}, Network: network})
		want(t, err, nil)
		defer s.Close()
		var place kvstore.Placement = wiretest.Unproven{}
		if bytes.HasPrefix(answer, []byte(asked)) {
			place = wiretest.Spread{N: 1}
		}
		want(t, s.Join(place), nil)
		ch, err := s.Channel(t.Context())
		want(t, err, nil)
		defer ch.Close()
		c := ch.(*channel).conns[0]
		c.in, c.scratch, c.vectors = in, scratch, vectors
		clear(r.Data)
		clear(v.Data)
		ch.Do(&network.clock, []*kvstore.Op{w, d, r, v})
		if network.late > 1 {
			t.Fatalf("the network was waited for %d times after the time was over", network.late-1)
		}
		for _, op := range []*kvstore.Op{r, v} {
			if op.Err == nil && !bytes.Contains(answer, op.Data) {
				t.Fatal("a block was taken that the server did not send")
			}
		}
	})
}

// clock is a context whose time is over when the script says so: executions that wait
// for real time would be few.
type clock struct {
	context.Context
	over bool
}

func (c *clock) Err() error {
	if c.over {
		return context.DeadlineExceeded
	}
	return nil
}

// script is a network whose first connection answers as it is told; later ones are
// refused.
type script struct {
	answer []byte
	piece  int
	linked bool
	clock  clock
	idle   int // waits without a connection
	late   int // waits since the time was over, and the one that ended it
}

func (s *script) Dial(context.Context, string) (net.Conn, error) { return nil, unix.ECONNREFUSED }

func (s *script) Link(string) (Link, error) {
	if s.linked {
		return nil, unix.ECONNREFUSED
	}
	s.linked = true
	return &scriptLink{s}, nil
}

// patience is how often the client may wait without a connection: it dials again at
// once, and later after pauses that nobody waits for here.
const patience = 4

func (s *script) Wait(_ time.Duration, links []Link) {
	if len(links) == 0 {
		s.idle++
	}
	if s.idle >= patience {
		s.clock.over = true
		s.late++
	}
}

func (s *script) Jitter(time.Duration) time.Duration { return 0 }

type scriptLink struct{ s *script }

func (l *scriptLink) Send(b []byte) (int, error) { return len(b), nil }

func (l *scriptLink) Receive(b []byte, _ time.Duration) (int, error) {
	if len(l.s.answer) == 0 {
		return 0, io.EOF
	}
	n := copy(b, l.s.answer[:min(len(l.s.answer), l.s.piece)])
	l.s.answer = l.s.answer[n:]
	return n, nil
}

func (l *scriptLink) Close()    {}
func (l *scriptLink) Port() int { return 1 }
