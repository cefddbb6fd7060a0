package rig

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Line says how a bad wire is bad. The wire is our own and not toxiproxy's: faults
// here come after so many bytes, from a seed, and are counted, so that a run can be
// repeated and a test knows that something happened to it.
type Line struct {
	Delay   time.Duration // of what travels back
	Slice   int           // largest piece of what travels back
	Rate    int           // bytes per second, each way
	ResetIn int           // a connection is reset after so many bytes back, on average
	Garbage int           // so many bytes back, on average, until nonsense comes, then the end
}

// Chaos is a wire to a server (host:port) with a [Line] for each connection.
type Chaos struct {
	Addr string

	l      net.Listener
	target string
	line   Line
	calm   atomic.Bool
	faults atomic.Int64
	wg     sync.WaitGroup

	mu    sync.Mutex
	rng   *rand.Rand        // guarded by mu
	conns map[net.Conn]bool // guarded by mu
}

// NewChaos listens on a free port and forwards to target.
func NewChaos(t testing.TB, target string, line Line, seed uint64) *Chaos {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Chaos{Addr: l.Addr().String(), l: l, target: target, line: line,
		rng: rand.New(rand.NewPCG(seed, 11)), conns: map[net.Conn]bool{}}
	c.wg.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.mu.Lock()
		for conn := range c.conns {
			conn.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

// URL is the store's URL by way of the wire.
func (c *Chaos) URL() string { return "memcached://" + c.Addr }

// Faults is how many connections were ended in the middle.
func (c *Chaos) Faults() int64 { return c.faults.Load() }

// Calm ends the resets and the nonsense, also of connections that stand.
func (c *Chaos) Calm() { c.calm.Store(true) }

// Rage lets the faults begin again, also on the connections that are there.
func (c *Chaos) Rage() { c.calm.Store(false) }

func (c *Chaos) accept() {
	for {
		down, err := c.l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", c.target)
		if err != nil {
			down.Close()
			continue
		}
		c.mu.Lock()
		c.conns[down], c.conns[up] = true, true
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
		c.mu.Unlock()
		end := func() {
			for _, x := range []net.Conn{down, up} {
				x.Close()
			}
			c.mu.Lock()
			delete(c.conns, down)
			delete(c.conns, up)
			c.mu.Unlock()
		}
		c.wg.Go(func() { defer end(); c.forth(up, down) })
		c.wg.Go(func() { defer end(); c.back(down, up, rng) })
	}
}

// forth carries what travels to the server.
func (c *Chaos) forth(dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		c.pace(n)
		if _, werr := dst.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (c *Chaos) pace(n int) {
	if c.line.Rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(c.line.Rate))
	}
}

// back carries the answers, and is where the faults are.
func (c *Chaos) back(dst, src net.Conn, rng *rand.Rand) {
	limit := -1
	if m := max(c.line.ResetIn, c.line.Garbage); m > 0 {
		limit = rng.IntN(2 * m)
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if c.line.Delay > 0 {
			time.Sleep(c.line.Delay)
		}
		c.pace(n)
		for b := buf[:n]; len(b) > 0; {
			k := len(b)
			if c.line.Slice > 0 && !c.calm.Load() {
				k = min(k, 1+rng.IntN(c.line.Slice))
			}
			if limit >= 0 && !c.calm.Load() {
				if limit < k {
					c.faults.Add(1)
					_, _ = dst.Write(b[:limit])
					if c.line.Garbage > 0 {
						_, _ = dst.Write(nonsense(rng))
						return
					}
					_ = dst.(*net.TCPConn).SetLinger(0) // a reset, not an end
					return
				}
				limit -= k
			}
			if _, err := dst.Write(b[:k]); err != nil {
				return
			}
			b = b[k:]
		}
	}
}

// nonsense is what no server says, and what one says at another time. STORED is not
// in it: who says so and lies is not found by anybody.
func nonsense(rng *rand.Rand) []byte {
	lines := []string{"\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "ERROR\r\n", "SERVER_ERROR out of memory writing\r\n",
		"CLIENT_ERROR bad data chunk\r\n", "VALUE x 1 99999999999\r\n", "VALUE x 99999999999 1\r\n", "END\r\nEND\r\nEND\r\n",
		"VALUE AAAAAAAAAAAAAAAA 2147483648 4096\r\n", "NOT_FOUND\r\nNOT_FOUND\r\n"}
	if rng.IntN(2) == 0 {
		return []byte(lines[rng.IntN(len(lines))])
	}
	b := make([]byte, 1+rng.IntN(8000))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
