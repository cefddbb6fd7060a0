package memcached

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// A process that is killed leaves connections behind, and what it sent on them the
// server may still execute, after its successor wrote something newer. So each
// process keeps a list of its data connections in a file on tmpfs, which it holds
// locked: a file that is not locked is a dead process's. Before its first change a
// successor waits until no server lists one of those connections.

const (
	traceRecord = 256  // bytes of one connection in the file
	traceSlots  = 4096 // connections that are remembered; more are not in use
	traceExt    = ".conns"
)

// trace is this process's list. The zero trace remembers nothing.
type trace struct {
	dir string

	mu   sync.Mutex // guards what follows; taken when a connection comes or goes
	file *os.File   // nil until the first connection
	path string     // of file
	used []bool     // by slot
}

// add remembers a connection and returns its slot, -1 if it cannot: then a
// successor does not wait for it.
func (t *trace) add(server string, port int) int {
	if t.dir == "" {
		return -1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil && t.make() != nil {
		return -1
	}
	slot := 0
	for slot < len(t.used) && t.used[slot] {
		slot++
	}
	line := fmt.Sprintf("%d %s", port, server)
	if slot == traceSlots || len(line) >= traceRecord {
		return -1
	}
	if t.write(slot, line) != nil {
		return -1
	}
	if slot == len(t.used) {
		t.used = append(t.used, false)
	}
	t.used[slot] = true
	return slot
}

// make makes the file. It is locked before it gets its name: who comes at the same
// time would take it for a dead process's, and remove it. t.mu is held.
func (t *trace) make() error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(t.dir, "*.new")
	if err != nil {
		return err
	}
	path := strings.TrimSuffix(f.Name(), ".new") + traceExt
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		f.Close()
		return err
	}
	t.file, t.path = f, path
	return nil
}

// write replaces a record, in one call so that a kill leaves the old one or the new.
func (t *trace) write(slot int, line string) error {
	record := line + strings.Repeat(" ", traceRecord-1-len(line)) + "\n"
	_, err := t.file.WriteAt([]byte(record), int64(slot)*traceRecord)
	return err
}

// remove forgets a connection: nothing that was sent on it can be executed any more.
func (t *trace) remove(slot int) {
	if slot < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != nil && t.write(slot, "") == nil {
		t.used[slot] = false
	}
}

// close removes the file, unless it remembers something.
func (t *trace) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file == nil {
		return
	}
	left := false
	for _, u := range t.used {
		left = left || u
	}
	if !left {
		_ = os.Remove(t.path)
	}
	_ = t.file.Close()
	t.file = nil
}

// forget takes a connection out of the list once the server is done with it, if it
// still has to be waited for.
func (s *server) forget(slot int, e *wire.Drain) {
	if e == nil {
		s.store.trace.remove(slot)
		return
	}
	if slot < 0 {
		return
	}
	s.helpers.Go(func(ctx context.Context) {
		<-e.Over()
		if ctx.Err() == nil { // else it is over because we are
			s.store.trace.remove(slot)
		}
	})
}

// legacy is what dead processes left on one server.
type legacy struct {
	ports map[int]bool // of TCP connections
	count int
}

// awaitPredecessors keeps requests from the servers until they are done with the
// connections of processes that were killed. It returns at once.
func (s *Store) awaitPredecessors() {
	if s.trace.dir == "" {
		return
	}
	files, _ := os.ReadDir(s.trace.dir) // a pattern would take signs of the path for its own
	left := map[*server]*legacy{}
	var over []*wire.Drain
	var dead []string
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), traceExt) {
			continue
		}
		path := filepath.Join(s.trace.dir, f.Name())
		records, ok := readTrace(path)
		if !ok {
			continue // its process lives
		}
		ours := true // it can go once our servers are done with it
		for _, r := range records {
			srv := s.serverAt(r.server)
			if srv == nil {
				ours = false
				continue
			}
			l := left[srv]
			if l == nil {
				l = &legacy{ports: map[int]bool{}}
				left[srv] = l
			}
			l.ports[r.port] = true
			l.count++
		}
		if ours {
			dead = append(dead, path)
		}
	}
	for srv, l := range left {
		e := srv.awaitLegacy(l)
		srv.holds.UntilAll(srv.helpers, e)
		over = append(over, e)
	}
	s.helpers.Go(func(ctx context.Context) {
		for _, e := range over {
			<-e.Over()
		}
		if ctx.Err() != nil {
			return // it is not over
		}
		for _, path := range dead {
			_ = os.Remove(path)
		}
	})
}

func (s *Store) serverAt(addr string) *server {
	for _, srv := range s.servers {
		if srv.addr == addr {
			return srv
		}
	}
	return nil
}

type traced struct {
	port   int
	server string
}

// readTrace reads the list of a dead process; ok is false if it lives. Several
// successors may read one.
func readTrace(path string) (records []traced, ok bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return nil, false
	}
	buf := make([]byte, traceSlots*traceRecord)
	n, _ := f.ReadAt(buf, 0) // io.EOF: it is shorter
	for line := range strings.Lines(string(buf[:n])) {
		port, server, found := strings.Cut(strings.TrimSpace(line), " ")
		if p, err := strconv.Atoi(port); found && err == nil {
			records = append(records, traced{p, server})
		}
	}
	return records, true
}

// legacyLimit bounds the wait where connections cannot be told apart: on a unix
// socket, for other clients' that were there before.
const legacyLimit = time.Second

// awaitLegacy begins to wait until the server is done with a dead process's
// connections.
func (s *server) awaitLegacy(l *legacy) *wire.Drain {
	s.store.cfg.Log("memcached %s: a process of this machine was killed with %d connections open; requests wait until the server has dropped them", s.addr, l.count)
	if s.where.Network != "unix" {
		return s.exorcise(l.ports)
	}
	return wire.NewDrain(s.helpers, func(ctx context.Context) {
		var first map[string]bool // connections that there were when it first answered
		var heard time.Time
		for pause := wire.DrainPause; ctx.Err() == nil; pause = min(2*pause, time.Second) {
			now, err := s.unixConns(ctx)
			var said *serverError
			switch {
			case errors.As(err, &said):
				now, err = map[string]bool{"": true}, nil // it cannot tell: the limit decides
			case err != nil:
			}
			if err == nil {
				if first == nil {
					first, heard = now, time.Now()
				}
				gone := true
				for id := range first {
					gone = gone && !now[id]
				}
				if gone {
					return
				}
				if time.Since(heard) > legacyLimit {
					s.store.cfg.Log("memcached %s: going on after %v without proof that it has dropped the connections of the process that was killed: on a unix socket they look like those of others", s.addr, legacyLimit)
					return
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

// unixConns lists the connections of a server on a unix socket, less the one that
// asks. That one is executing a command; if others are too, none is left out, and
// the next look will tell.
func (s *server) unixConns(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conns := map[string]bool{}
	var executing []string
	err := s.talk(ctx, []byte("stats conns\r\n"), func(in *lineReader) error {
		return in.stats(func(name, value string) {
			// 24:listen_addr unix:/run/memcached.sock, and 24:state conn_read
			id, field, _ := strings.Cut(name, ":")
			switch {
			case field == "listen_addr" && strings.HasPrefix(value, "unix:"):
				conns[id] = true
			case field == "state" && value == "conn_parse_cmd":
				executing = append(executing, id)
			}
		})
	})
	if len(executing) == 1 {
		delete(conns, executing[0])
	}
	return conns, err
}
