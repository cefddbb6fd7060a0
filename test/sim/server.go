package sim

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// server is a memcached with unlimited memory. Guarded by World.mu.
type server struct {
	w     *World
	addr  string
	items map[string]item
	cas   uint64
	ports map[int]bool // links that it knows

	until   time.Time // it is stopped until then
	waiting []func()  // what is done then
}

type item struct {
	flags uint64
	value []byte
	cas   uint64
}

func newServer(w *World, addr string) *server {
	return &server{w: w, addr: addr, items: map[string]item{}, ports: map[int]bool{}}
}

func (s *server) stopped() bool { return time.Now().Before(s.until) }

// stop lets the server stop for a while, now and then. Called per command.
func (s *server) stop() {
	w := s.w
	if s.stopped() || !w.oneIn(w.plan.StopIn) {
		return
	}
	d := time.Duration(w.rng.Int64N(int64(w.plan.Stop)))
	s.until = time.Now().Add(d)
	w.note("stop %s %d", s.addr, d)
	w.after(d, func() {
		w.note("continue %s", s.addr)
		waiting := s.waiting
		s.waiting = nil
		for _, f := range waiting {
			f()
		}
	})
}

// whenContinued does f when a stopped server goes on.
func (s *server) whenContinued(f func()) { s.waiting = append(s.waiting, f) }

// whenRunning is f, put off while the server is stopped.
func (s *server) whenRunning(f func()) func() {
	return func() {
		if s.stopped() {
			s.whenContinued(f)
			return
		}
		f()
	}
}

// serveControl serves a connection of the control plane until it is closed.
func (s *server) serveControl(c net.Conn) {
	defer c.Close()
	ses := &session{server: s, control: true}
	buf := make([]byte, 64<<10)
	// Answers wait in a queue, as in a socket: a client may send all before it reads.
	replies := make(chan []byte, 4096)
	defer close(replies)
	go func() {
		for b := range replies {
			if _, err := c.Write(b); err != nil {
				c.Close()
			}
		}
	}()
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		s.w.mu.Lock()
		pause := max(time.Until(s.until), 0) + s.w.travel(s.w.rng)
		s.w.mu.Unlock()
		time.Sleep(pause)
		s.w.mu.Lock()
		reply := ses.feed(buf[:n])
		s.w.mu.Unlock()
		if len(reply) > 0 {
			replies <- reply
		}
	}
}

// session is one connection's half-read input.
type session struct {
	server  *server
	control bool
	buf     []byte
}

// feed takes bytes and returns the answers to what is complete.
func (ses *session) feed(b []byte) (out []byte) {
	ses.buf = append(ses.buf, b...)
	rest := ses.buf
	defer func() { ses.buf = append(ses.buf[:0], rest...) }()
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			return out
		}
		f := strings.Fields(string(rest[:i]))
		n := i + 1
		var value []byte
		if len(f) > 4 && strings.Contains(" set add replace cas ", " "+f[0]+" ") {
			size, _ := strconv.Atoi(f[4])
			if len(rest) < n+size+2 {
				return out
			}
			value = append([]byte(nil), rest[n:n+size]...)
			n += size + 2
		}
		rest = rest[n:]
		if len(f) > 0 {
			if !ses.control {
				ses.server.stop()
			}
			out = ses.server.command(out, f, value)
		}
	}
}

func (s *server) command(out []byte, f []string, value []byte) []byte {
	old, there := item{}, false
	if len(f) > 1 {
		old, there = s.items[f[1]]
	}
	store := func() []byte {
		flags, _ := strconv.ParseUint(f[2], 10, 32)
		s.cas++
		s.items[f[1]] = item{flags, value, s.cas}
		return append(out, "STORED\r\n"...)
	}
	switch f[0] {
	case "get", "gets":
		for _, key := range f[1:] {
			if it, ok := s.items[key]; ok {
				out = fmt.Appendf(out, "VALUE %s %d %d", key, it.flags, len(it.value))
				if f[0] == "gets" {
					out = fmt.Appendf(out, " %d", it.cas)
				}
				out = append(append(append(out, "\r\n"...), it.value...), "\r\n"...)
			}
		}
		return append(out, "END\r\n"...)
	case "set":
		return store()
	case "add":
		if there {
			return append(out, "NOT_STORED\r\n"...)
		}
		return store()
	case "replace":
		if !there {
			return append(out, "NOT_STORED\r\n"...)
		}
		return store()
	case "cas":
		switch {
		case !there:
			return append(out, "NOT_FOUND\r\n"...)
		case f[5] != strconv.FormatUint(old.cas, 10):
			return append(out, "EXISTS\r\n"...)
		}
		return store()
	case "delete":
		if !there {
			return append(out, "NOT_FOUND\r\n"...)
		}
		delete(s.items, f[1])
		return append(out, "DELETED\r\n"...)
	case "version":
		return append(out, "VERSION sim\r\n"...)
	case "stats":
		if len(f) > 1 && f[1] == "conns" {
			return append(out, s.listed()...)
		}
		return append(out, "END\r\n"...)
	}
	return append(out, "ERROR\r\n"...)
}
