package daemon

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns bounds the callers of one daemon, against a script that loops.
	maxConns = 64
	// maxRequest bounds one request line; the longest has a name and two numbers.
	maxRequest = 64 << 10
	// progressEvery is how often a long call reports; more would only cost.
	progressEvery = 100 * time.Millisecond
)

// listener serves the control socket.
type listener struct {
	ln      *net.UnixListener
	methods map[string]method
	log     func(format string, args ...any)

	ctx    context.Context // ends at close; parent of every call
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup // accept loop and calls
}

// listen makes the socket, mode 0600, at path, whose directory is 0700.
func listen(path string, methods map[string]method, log func(string, ...any)) (*listener, error) {
	// We hold the registry's lock, so a socket here belongs to a dead daemon.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	l := &listener{ln: ln, methods: methods, log: log, slots: make(chan struct{}, maxConns)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.accept()
	return l, nil
}

// close stops accepting, cancels the calls and waits for them.
func (l *listener) close() {
	l.cancel()
	_ = l.ln.Close()
	l.wg.Wait()
}

func (l *listener) accept() {
	defer l.wg.Done()
	for {
		conn, err := l.ln.AcceptUnix()
		if err != nil {
			if l.ctx.Err() != nil {
				return
			}
			l.log("control socket: %v", err)
			select { // out of descriptors, perhaps: it may pass
			case <-time.After(time.Second):
				continue
			case <-l.ctx.Done():
				return
			}
		}
		select {
		case l.slots <- struct{}{}:
		default:
			conn.Close() // the caller reads this as not answering
			continue
		}
		l.wg.Add(1)
		go func() {
			defer func() { conn.Close(); <-l.slots; l.wg.Done() }()
			l.serve(conn)
		}()
	}
}

// serve answers the calls of one connection, one after the other.
func (l *listener) serve(conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	stop := context.AfterFunc(l.ctx, func() {
		// The last answer of umount still has to go out.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
		_ = conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	})
	defer stop()
	if err := checkCaller(conn); err != nil {
		l.log("control socket: %v", err)
		return
	}
	// The reader runs beside the call, so that a caller who hangs up is noticed.
	lines := make(chan []byte)
	go func() {
		defer cancel()
		defer close(lines)
		sc := bufio.NewScanner(conn)
		sc.Buffer(make([]byte, 0, 4096), maxRequest)
		for sc.Scan() {
			select {
			case lines <- append([]byte(nil), sc.Bytes()...):
			case <-ctx.Done():
				return
			}
		}
	}()
	out := json.NewEncoder(conn)
	for line := range lines {
		if err := out.Encode(l.call(ctx, line, out)); err != nil {
			break
		}
	}
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	cancel()
	for range lines { // until the reader has gone
	}
}

// call runs one request and makes its last response line.
func (l *listener) call(ctx context.Context, line []byte, out *json.Encoder) (r response) {
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		return failure(fmt.Errorf("request is not JSON: %w", err))
	}
	m, ok := l.methods[req.Method]
	if !ok {
		return failure(fmt.Errorf("%w: %q", ErrMethod, req.Method))
	}
	var mu sync.Mutex // guards last, done and the use of out by progress
	var last time.Time
	done := false
	progress := func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		if done || (p.Text == "" && p.Done != p.Total && time.Since(last) < progressEvery) {
			return
		}
		last = time.Now()
		_ = out.Encode(response{Progress: &p}) // a caller who left is seen by the reader
	}
	defer func() {
		mu.Lock()
		done = true
		mu.Unlock()
		if p := recover(); p != nil {
			l.log("panic in %s: %v\n%s", req.Method, p, debug.Stack())
			r = failure(fmt.Errorf("internal error in %s: %v; this is a bug, the daemon's log has more", req.Method, p))
		}
	}()
	result, err := m(ctx, req.Params, progress)
	if err != nil {
		return failure(err)
	}
	if result != nil {
		if r.Result, err = json.Marshal(result); err != nil {
			return failure(err)
		}
	}
	return r
}

func failure(err error) response {
	text := err.Error()
	if text == "" {
		text = "failed" // an empty text would read as success
	}
	return response{Error: text, Kinds: kindsOf(err)}
}

// checkCaller admits our own user and root: the socket's mode says the same, but
// a directory can be made readable by mistake.
func checkCaller(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of user %d may not talk to this daemon", cred.Pid, cred.Uid)
	}
	return nil
}
