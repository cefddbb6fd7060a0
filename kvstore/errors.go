package kvstore

import (
	"errors"
	"fmt"
)

// Results that say "nothing changed".
var (
	// ErrAbsent: the block or record is not there.
	ErrAbsent = errors.New("absent")
	// ErrExists: it is there already.
	ErrExists = errors.New("exists already")
	// ErrConflict: it was changed by somebody else.
	ErrConflict = errors.New("changed by somebody else")
	// ErrFull: the server has no room. The old value, if any, is untouched.
	ErrFull = errors.New("store is full")
	// ErrFenced: the right to write has ended; nothing was sent.
	ErrFenced = errors.New("write lease is not valid")
	// ErrInvalid: the caller broke the contract; nothing was sent.
	ErrInvalid = errors.New("invalid operation")
	// ErrUnsupported: the store cannot do this; nothing was sent.
	ErrUnsupported = errors.New("not supported by this store")
)

// Results about the data.
var (
	// ErrCorrupt: the block's checksum, length or key is wrong.
	ErrCorrupt = errors.New("block is corrupt")
	// ErrServerLost: the server does not know the pool's sentinel: it was
	// emptied or replaced, and blocks are lost.
	ErrServerLost = errors.New("server was emptied or replaced")
)

// Results after which the outcome of a write or discard is unknown.
var (
	// ErrTimeout: the context's deadline passed while waiting for a server.
	ErrTimeout = errors.New("no answer in time")
	// ErrAborted: the context was cancelled while waiting for a server.
	ErrAborted = errors.New("aborted")
	// ErrUnreachable: the server cannot be reached or does not answer as a
	// server of this store does. Control calls return it at once; channels
	// retry instead.
	ErrUnreachable = errors.New("server cannot be reached")
	// ErrClosed: the store or channel is closed.
	ErrClosed = errors.New("closed")
)

// ErrPending is the result of an operation that has none yet: see Channel.Try.
var ErrPending = errors.New("not answered yet")

// Prompt is embedded by stores whose servers are never silent, never replaced and do
// nothing late, because they are in this process.
type Prompt struct{}

// Silent implements Store.
func (Prompt) Silent(Key) bool { return false }

// AnySilent implements Store.
func (Prompt) AnySilent() bool { return false }

// Rewinds implements Store.
func (Prompt) Rewinds() uint64 { return 0 }

// Haunted implements Store.
func (Prompt) Haunted(Key) bool { return false }

// OpError says what failed, on what. It wraps one of the sentinels above.
type OpError struct {
	Op     string // "read", "write", "discard", "flush", "get record" ...
	Server string // address, empty if not known
	Key    Key    // zero if not about a block
	Name   string // control record, empty if not about one
	Err    error
}

func (e *OpError) Error() string {
	on := ""
	switch {
	case e.Name != "":
		on = " " + e.Name
	case e.Key != Key{}:
		on = " " + e.Key.String()
	}
	if e.Server != "" {
		on += " on " + e.Server
	}
	return fmt.Sprintf("%s%s: %v", e.Op, on, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }
