package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"os"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// request is one line from a client.
type request struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

// response is one line from a daemon: progress, or the last one, with a result
// or an error.
type response struct {
	Result   json.RawMessage `json:"result,omitempty"`
	Progress *Progress       `json:"progress,omitempty"`
	Error    string          `json:"error,omitempty"`
	Kinds    []string        `json:"kinds,omitempty"` // names of the sentinels that the error wraps
}

// Progress says how far a long call has come.
type Progress struct {
	Text  string `json:"text,omitempty"`
	Done  int64  `json:"done,omitempty"`  // of Total, in Text's unit
	Total int64  `json:"total,omitempty"` // 0: not known
}

// ErrMethod: the daemon does not know the method; it is of another version.
var ErrMethod = errors.New("daemon does not know this call")

// sentinels are the errors that keep their identity across the socket. Names are
// part of the protocol.
var sentinels = []struct {
	name string
	err  error
}{
	{"absent", kvstore.ErrAbsent}, {"exists", kvstore.ErrExists}, {"conflict", kvstore.ErrConflict},
	{"full", kvstore.ErrFull}, {"fenced", kvstore.ErrFenced}, {"invalid", kvstore.ErrInvalid},
	{"unsupported", kvstore.ErrUnsupported}, {"corrupt", kvstore.ErrCorrupt},
	{"server_lost", kvstore.ErrServerLost}, {"timeout", kvstore.ErrTimeout},
	{"aborted", kvstore.ErrAborted}, {"unreachable", kvstore.ErrUnreachable}, {"closed", kvstore.ErrClosed},
	{"no_pool", pool.ErrNoPool}, {"forgotten", pool.ErrForgotten}, {"other_servers", pool.ErrOtherServers},
	{"no_volume", pool.ErrNoVolume}, {"volume_exists", pool.ErrVolumeExists}, {"bad_name", pool.ErrBadName},
	{"bad_size", pool.ErrBadSize}, {"held", pool.ErrHeld}, {"format", pool.ErrFormat},
	{"lost", volume.ErrLost}, {"read_only", volume.ErrReadOnly}, {"outside", volume.ErrOutside},
	{"in_use", volume.ErrInUse}, {"volume_aborted", volume.ErrVolumeAborted}, {"shrink", volume.ErrShrink}, {"unaccepted", volume.ErrUnaccepted},
	{"overtaken", volume.ErrOvertaken},
	{"mount_busy", fusefs.ErrBusy}, {"no_fuse", fusefs.ErrNoFUSE}, {"mount_point", fusefs.ErrMountPoint},
	{"input", stack.ErrInput}, {"method", ErrMethod}, {"mounted", ErrMounted},
	{"permission", os.ErrPermission}, {"deadline", context.DeadlineExceeded}, {"canceled", context.Canceled},
}

// kindsOf names the sentinels that err wraps.
func kindsOf(err error) []string {
	var out []string
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			out = append(out, s.name)
		}
	}
	return out
}

// remoteError is an error that came over the socket: its text, and what
// errors.Is finds in it.
type remoteError struct {
	text  string
	wraps []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.wraps }

// errorOf builds the error of a response; nil if it is none.
func errorOf(r response) error {
	if r.Error == "" {
		return nil
	}
	e := &remoteError{text: r.Error}
	for _, name := range r.Kinds {
		for _, s := range sentinels {
			if s.name == name {
				e.wraps = append(e.wraps, s.err)
			}
		}
	}
	return e
}
