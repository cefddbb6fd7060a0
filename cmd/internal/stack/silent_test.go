package stack

import (
	"context"
	"net"
	"strings"
	"testing"
)

// TestOpenInterrupted: who waits for a silent server is told so, and after an interrupt
// hears nothing of the request.
func TestOpenInterrupted(t *testing.T) {
	isolate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said := make(chan string, 16)
	opened := make(chan error, 1)
	go func() {
		_, err := Open(ctx, Config{URL: "memcached://" + l.Addr().String(), Log: func(_ string, args ...any) {
			if len(args) == 1 {
				said <- args[0].(string)
			}
		}})
		opened <- err
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.Close() // nor does it try again
	select {
	case who := <-said:
		if !strings.Contains(l.Addr().String(), who) {
			t.Errorf("it waits for %q, want %s", who, l.Addr())
		}
	case err := <-opened:
		t.Fatalf("opening ended before it was interrupted: %v", err)
	}
	cancel()
	if err := <-opened; err != context.Canceled {
		t.Errorf("after the interrupt: %v, want %v alone", err, context.Canceled)
	}
}
