package memcached

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// leashed is a connection for gomemcache, which allocates what a VALUE line says before
// a byte of it is there, and gives a server its time anew with each item: a reply may
// have one length and take one time, however many items it has, and ends with the store.
// gomemcache uses a connection from one goroutine at a time.
type leashed struct {
	net.Conn
	timeout time.Duration
	free    func() bool // of the store's life
	left    int         // bytes that the reply may still have
	skip    int         // bytes of the value under way
	line    []byte      // of the line under way
}

// maxControlReply is a record with the lines around it.
const maxControlReply = maxLine + kvstore.MaxRecord + len("\r\nEND\r\n")

// dialLeashed is dial for gomemcache, which has no context of its own.
func (s *server) dialLeashed(ctx context.Context) (net.Conn, error) {
	life := s.helpers.Life()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	line := conn
	if c, ok := conn.(*tls.Conn); ok {
		line = c.NetConn() // Close of TLS would say farewell first
	}
	return &leashed{
		Conn: conn, timeout: s.store.cfg.TryTimeout, line: make([]byte, 0, maxLine),
		free: context.AfterFunc(life, func() { _ = line.Close() }),
	}, nil
}

// SetDeadline implements net.Conn: Write decides.
func (l *leashed) SetDeadline(time.Time) error { return nil }

// Write implements net.Conn: what comes next is a new reply.
func (l *leashed) Write(b []byte) (int, error) {
	l.left, l.skip, l.line = maxControlReply, 0, l.line[:0]
	if err := l.Conn.SetDeadline(time.Now().Add(l.timeout)); err != nil {
		return 0, err
	}
	return l.Conn.Write(b)
}

// Read implements net.Conn. Nothing is handed on that was not looked at.
func (l *leashed) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if l.left -= n; l.left < 0 {
		return 0, errMalformed
	}
	if err := l.look(b[:n]); err != nil {
		return 0, err
	}
	return n, err
}

// look finds the lines of values, and refuses one that is longer than any record.
func (l *leashed) look(b []byte) error {
	for len(b) > 0 {
		if n := min(l.skip, len(b)); n > 0 {
			l.skip -= n
			b = b[n:]
			continue
		}
		n := min(len(b), maxLine-len(l.line))
		had := len(l.line)
		l.line = append(l.line, b[:n]...)
		line, whole, err := cutLine(l.line)
		switch {
		case err != nil:
			return err
		case whole == 0:
			return nil // all of b is in it, or it would be too long
		}
		b = b[whole-had:]
		if rest, ok := bytes.CutPrefix(line, []byte("VALUE ")); ok {
			rep, err := parseValue(rest)
			if err != nil {
				return err
			}
			if rep.size > kvstore.MaxRecord {
				return fmt.Errorf("%w: a value of %d bytes", errMalformed, rep.size)
			}
			l.skip = rep.size + len("\r\n")
		}
		l.line = l.line[:0]
	}
	return nil
}

// Close implements net.Conn.
func (l *leashed) Close() error {
	err := l.Conn.Close()
	if !l.free() {
		return nil // the store's end closes it too
	}
	return err
}
