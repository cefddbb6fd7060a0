package memcached

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// TestEndlessRecord: a reply that has one item after the other ends with its time, and
// with the store.
func TestEndlessRecord(t *testing.T) {
	endless := func(c net.Conn) {
		for {
			if _, err := fmt.Fprint(c, "VALUE x 0 1 1\r\ny\r\n"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	s := openAt(t, Config{TryTimeout: 300 * time.Millisecond}, answering(t, endless))
	_, err := s.Control().Get(bg(t), 0, "x:y")
	want(t, err, kvstore.ErrUnreachable)

	s, err = Open(bg(t), Config{Servers: []string{answering(t, endless)}, TryTimeout: time.Hour})
	want(t, err, nil)
	ctx, cancel := context.WithTimeout(bg(t), 100*time.Millisecond)
	defer cancel()
	_, err = s.Control().Get(ctx, 0, "x:y")
	want(t, err, kvstore.ErrTimeout)
	want(t, s.Close(), nil) // or the test's time is over
}

// TestLongRecord: what a server says of a value's length is not believed before it is
// looked at, and a reply has an end.
func TestLongRecord(t *testing.T) {
	for name, answer := range map[string]string{
		"what nobody has":     "VALUE x:y 0 4294967295 1\r\n",
		"what Go cannot make": "VALUE x:y 0 2147483647 1\r\n",
		"more than a record":  fmt.Sprintf("VALUE x:y 0 %d 1\r\n", kvstore.MaxRecord+1),
		"two records":         strings.Repeat(fmt.Sprintf("VALUE x:y 0 600000 1\r\n%0600000d\r\n", 0), 2) + "END\r\n",
		"no end of a line":    strings.Repeat("x", 2*maxLine),
	} {
		t.Run(name, func(t *testing.T) {
			s := openAt(t, Config{TryTimeout: 10 * time.Second}, answering(t, func(c net.Conn) { fmt.Fprint(c, answer) }))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := s.Control().Get(bg(t), 0, "x:y")
			runtime.ReadMemStats(&after)
			want(t, err, kvstore.ErrUnreachable)
			if !strings.Contains(err.Error(), errMalformed.Error()) {
				t.Error(err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
				t.Errorf("%d bytes were allocated", got)
			}
		})
	}
}

// TestRecordInPieces: lines and values that are cut anywhere are understood.
func TestRecordInPieces(t *testing.T) {
	value := "VALUE a 0 4294967295 1\r\nEND\r\n"
	reply := fmt.Sprintf("VALUE x:y 0 %d 7\r\n%s\r\nEND\r\n", len(value), value)
	for _, piece := range []int{1, 2, 3, 7, 20, len(reply)} {
		l := &leashed{left: maxControlReply}
		for rest := reply; rest != ""; {
			n := min(piece, len(rest))
			want(t, l.look([]byte(rest[:n])), nil)
			rest = rest[n:]
		}
		if l.skip != 0 || len(l.line) != 0 {
			t.Errorf("pieces of %d: %d bytes and %q are left", piece, l.skip, l.line)
		}
	}
}
