package wire

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A name is looked up again after so many dials in a row that led to nothing, and
// not more often than this. Only the address changes: the sentinel still proves
// who is there.
const (
	lookupAfter = 4
	lookupPause = 5 * time.Second
)

// Address is where a server is: host:port, or the absolute path of a unix socket.
// Safe for concurrent use once Lookup has returned.
type Address struct {
	// Network is "tcp" or "unix".
	Network string
	// Name is as the user wrote it.
	Name string

	// At is what the name led to: dials go there.
	At atomic.Pointer[unix.Sockaddr]

	asked atomic.Int64 // Clock of the last lookup that LookupAgain began
}

// Lookup resolves a name; ErrUnreachable if that fails.
func (a *Address) Lookup(ctx context.Context, name string) error {
	a.Network, a.Name = "tcp", name
	if strings.HasPrefix(name, "/") {
		a.Network = "unix"
	}
	sa, err := Resolve(ctx, a.Network, name)
	if err != nil {
		return &kvstore.OpError{Op: "resolve", Server: name, Err: fmt.Errorf("%w: %w", kvstore.ErrUnreachable, err)}
	}
	a.At.Store(&sa)
	return nil
}

// LookupAgain begins to look up the name after failures dials in a row, unless
// that was done lately or is too early.
func (a *Address) LookupAgain(h *Helpers, failures int) {
	now := Clock()
	last := a.asked.Load()
	if failures < lookupAfter || a.Network == "unix" || now-last < int64(lookupPause) || !a.asked.CompareAndSwap(last, now) {
		return
	}
	h.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, lookupPause)
		defer cancel()
		if sa, err := Resolve(ctx, a.Network, a.Name); err == nil {
			a.At.Store(&sa)
		}
	})
}

// Dial begins a connection: see [Dial].
func (a *Address) Dial() (fd int, done bool, err error) { return Dial(*a.At.Load()) }
