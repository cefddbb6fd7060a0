package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrNotAnswering: the daemon lives but did not answer in time, or is gone.
var ErrNotAnswering = errors.New("daemon is not answering")

// maxLine bounds one line of the socket: a list of some ten thousand volumes.
const maxLine = 32 << 20

// Call asks a daemon. Methods: status, list, info, create, resize, remove, scrub,
// where, set, umount; methods.go has the type of each one's params and result. Errors
// keep their identity (errors.Is with the sentinels of pool and volume works
// across the socket). ctx bounds the wait; the daemon gives the work up when the
// caller goes away, except for umount.
func Call(ctx context.Context, m Mount, method string, params, result any) error {
	return CallProgress(ctx, m, method, params, result, nil)
}

// CallProgress is Call that also reports how far the work has come. progress may
// be nil; it is called by the calling goroutine.
func CallProgress(ctx context.Context, m Mount, method string, params, result any, progress func(Progress)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", m.Socket)
	if err != nil {
		return fmt.Errorf("%w: process %d of %s: %v", ErrNotAnswering, m.PID, m.Dir, err)
	}
	defer conn.Close()
	// The deadline of the past wakes what waits for the daemon when ctx ends.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	broken := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%w: process %d of %s: %w", ErrNotAnswering, m.PID, m.Dir, err)
	}
	req := request{Method: method}
	if params != nil {
		if req.Params, err = json.Marshal(params); err != nil {
			return err
		}
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return broken(err)
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	for lines.Scan() {
		var r response
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return broken(err)
		}
		if r.Progress != nil {
			if progress != nil {
				progress(*r.Progress)
			}
			continue
		}
		if err := errorOf(r); err != nil {
			return err
		}
		if result == nil || len(r.Result) == 0 {
			return nil
		}
		return json.Unmarshal(r.Result, result)
	}
	if err := lines.Err(); err != nil {
		return broken(err)
	}
	return broken(errors.New("it closed the connection"))
}
