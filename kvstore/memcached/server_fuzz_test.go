package memcached

import (
	"context"
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
// down, make it take a block that is not one, or keep it longer than its deadline.
func FuzzServer(f *testing.F) {
	good := block(1)
	value := append([]byte("VALUE "+keyText(key(1))+" "), []byte("2147483648 4096\r\n")...)
	f.Add([]byte("STORED\r\nDELETED\r\nEND\r\n"), byte(3))
	f.Add([]byte("NOT_STORED\r\nNOT_FOUND\r\n"), byte(200))
	f.Add(append(append(append([]byte("STORED\r\nDELETED\r\n"), value...), good...), "\r\nEND\r\n"...), byte(60))
	f.Add(append(value, good...), byte(1))
	f.Add([]byte("STORED\r\nDELETED\r\nVALUE x 1 1048576\r\n"), byte(9))
	f.Add([]byte("SERVER_ERROR out of memory storing object\r\nERROR\r\n"), byte(0))
	f.Fuzz(func(t *testing.T, answer []byte, piece byte) {
		if len(answer) > 64<<10 {
			return
		}
		network := &script{answer: answer, piece: 1 + int(piece)}
		s, err := Open(t.Context(), Config{Servers: []string{"127.0.0.1:1"}, Network: network})
		want(t, err, nil)
		defer s.Close()
		want(t, s.Join(wiretest.Unproven{}), nil)
		ch, err := s.Channel(t.Context())
		want(t, err, nil)
		defer ch.Close()
		w, d, r, v := write(2, kvstore.Any, block(2)), discard(3), read(1), read(1)
		v.Versioned = true
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		ch.Do(ctx, []*kvstore.Op{w, d, r, v})
		for _, op := range []*kvstore.Op{r, v} {
			if op.Err == nil && !contains(answer, op.Data) {
				t.Fatal("a block was taken that the server did not send")
			}
		}
	})
}

func contains(answer, data []byte) bool {
	for i := 0; i+len(data) <= len(answer); i++ {
		if string(answer[i:i+len(data)]) == string(data) {
			return true
		}
	}
	return false
}

// script is a network whose first connection answers as it is told; later ones are
// refused.
type script struct {
	answer []byte
	piece  int
	linked bool
}

func (s *script) Dial(context.Context, string) (net.Conn, error) { return nil, unix.ECONNREFUSED }

func (s *script) Link(string) (Link, error) {
	if s.linked {
		return nil, unix.ECONNREFUSED
	}
	s.linked = true
	return &scriptLink{s}, nil
}

func (s *script) Wait(d time.Duration, links []Link) {
	if len(links) == 0 {
		time.Sleep(min(d, time.Millisecond))
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
