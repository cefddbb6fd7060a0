package rig

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/kvbfs/kvbfs/kvstore"
)

// Recorder stands between kvbfs and a memcached and keeps a log of the changes that
// the server acknowledged. It passes on one command at a time, whatever connection
// it came over, so the log is the order in which the server did them.
type Recorder struct {
	Addr string // of its unix socket

	l    net.Listener
	up   net.Conn
	upIn *bufio.Reader
	wg   sync.WaitGroup

	mu    sync.Mutex // guards what follows, and up
	log   []Change
	conns []net.Conn
}

// Change is one acknowledged change of a server.
type Change struct {
	Key    string
	Flags  string
	Value  []byte // nil: deleted
	Record bool   // of the control plane
	Map    bool   // of the presence map
	LBA    int64  // of a block; -1: it is none
	// Flush: no change, but the sentinel was read, as the last step of each flush
	// (and at the beginning of each connection): what precedes it is stable.
	Flush bool
}

// Record starts a recorder before srv.
func (r *Rig) Record(srv *Memcached) *Recorder {
	r.T.Helper()
	addr := r.unique("recorder", ".sock")
	l, err := net.Listen("unix", addr)
	if err != nil {
		r.T.Fatal(err)
	}
	network := "tcp"
	if strings.HasPrefix(srv.Addr, "/") {
		network = "unix"
	}
	up, err := net.Dial(network, srv.Addr)
	if err != nil {
		r.T.Fatal(err)
	}
	rec := &Recorder{Addr: addr, l: l, up: up, upIn: bufio.NewReaderSize(up, 1<<20)}
	rec.wg.Go(rec.accept)
	r.T.Cleanup(rec.Close)
	return rec
}

// URL is the store's URL by way of the recorder.
func (rec *Recorder) URL() string { return "memcached+unix://" + rec.Addr }

// Position is the length of the log.
func (rec *Recorder) Position() int {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return len(rec.log)
}

// Log returns the log so far. Values are shared and must not be changed.
func (rec *Recorder) Log() []Change {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.log[:len(rec.log):len(rec.log)]
}

// Close ends the recorder and waits for its goroutines.
func (rec *Recorder) Close() {
	rec.l.Close()
	rec.mu.Lock()
	for _, c := range rec.conns {
		c.Close()
	}
	rec.up.Close()
	rec.mu.Unlock()
	rec.wg.Wait()
}

func (rec *Recorder) accept() {
	for {
		c, err := rec.l.Accept()
		if err != nil {
			return
		}
		rec.mu.Lock()
		rec.conns = append(rec.conns, c)
		rec.mu.Unlock()
		rec.wg.Go(func() {
			defer c.Close()
			rec.serve(c)
		})
	}
}

// serve passes the commands of one connection on until it ends.
func (rec *Recorder) serve(c net.Conn) {
	in, out := bufio.NewReaderSize(c, 1<<20), bufio.NewWriterSize(c, 1<<20)
	for {
		if in.Buffered() == 0 && out.Flush() != nil {
			return
		}
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		f := strings.Fields(string(line))
		var value []byte
		if len(f) > 4 && strings.Contains(" set add replace cas ", " "+f[0]+" ") {
			n, err := strconv.Atoi(f[4])
			if err != nil {
				return
			}
			value = make([]byte, n+2)
			if _, err := io.ReadFull(in, value); err != nil {
				return
			}
		}
		reply, err := rec.pass(f, line, value)
		if err != nil {
			return
		}
		if _, err := out.Write(reply); err != nil {
			return
		}
	}
}

// pass gives one command to the server and logs what it acknowledged.
func (rec *Recorder) pass(f []string, line, value []byte) ([]byte, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if _, err := rec.up.Write(append(line[:len(line):len(line)], value...)); err != nil {
		return nil, err
	}
	var reply []byte
	for many := len(f) > 0 && (strings.HasPrefix(f[0], "get") || f[0] == "stats"); ; {
		l, err := rec.upIn.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		reply = append(reply, l...)
		if v := strings.Fields(string(l)); len(v) > 3 && v[0] == "VALUE" {
			n, err := strconv.Atoi(v[3])
			if err != nil {
				return nil, err
			}
			data := make([]byte, n+2)
			if _, err := io.ReadFull(rec.upIn, data); err != nil {
				return nil, err
			}
			reply = append(reply, data...)
			continue
		}
		if !many || string(l) == "END\r\n" || bytes.Contains(l, []byte("ERROR")) {
			break
		}
	}
	switch string(reply) {
	case "STORED\r\n":
		rec.note(Change{Key: f[1], Flags: f[2], Value: value[:len(value)-2]})
	case "DELETED\r\n":
		rec.note(Change{Key: f[1]})
	}
	if len(f) == 2 && f[0] == "get" && strings.HasSuffix(f[1], ":sentinel") {
		rec.log = append(rec.log, Change{Flush: true, LBA: -1})
	}
	return reply, nil
}

func (rec *Recorder) note(c Change) {
	c.Record, c.LBA = strings.Contains(c.Key, ":"), -1
	if raw, err := base64.RawURLEncoding.DecodeString(c.Key); err == nil && len(raw) == kvstore.KeySize {
		k := kvstore.ParseKey(raw)
		if c.Map = k.Kind != kvstore.KindBlock; !c.Map {
			c.LBA = int64(k.Number)
		}
	}
	// A volume that is filled with one pattern takes the memory of one block.
	if n := len(rec.log); n > 0 && bytes.Equal(rec.log[n-1].Value, c.Value) && c.Value != nil {
		c.Value = rec.log[n-1].Value
	}
	rec.log = append(rec.log, c)
}

// Load puts items into a server, as a server would have them that did these
// changes.
func (m *Memcached) Load(changes []Change) {
	m.r.T.Helper()
	items := map[string]Change{}
	for _, c := range changes {
		if c.Flush {
			continue
		}
		if items[c.Key] = c; c.Value == nil {
			delete(items, c.Key)
		}
	}
	network := "tcp"
	if strings.HasPrefix(m.Addr, "/") {
		network = "unix"
	}
	conn, err := net.Dial(network, m.Addr)
	if err != nil {
		m.r.T.Fatal(err)
	}
	defer conn.Close()
	out := bufio.NewWriterSize(conn, 1<<20)
	for _, c := range items {
		fmt.Fprintf(out, "set %s %s 0 %d noreply\r\n", c.Key, c.Flags, len(c.Value))
		out.Write(c.Value)
		io.WriteString(out, "\r\n")
	}
	io.WriteString(out, "version\r\n")
	if err := out.Flush(); err != nil {
		m.r.T.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(line, "VERSION") {
		m.r.T.Fatalf("loading %d items: %q, %v", len(items), line, err)
	}
}
