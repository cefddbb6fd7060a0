// Package sim runs volumes over simulated memcached servers, with a seed for
// everything that is left to chance.
//
// What runs is the real thing from [volume.Worker] down to memcached's protocol
// client, control plane included. In place of sockets and servers there are links
// and servers of this package ([memcached.Network]); the clock is that of a
// testing/synctest bubble, in which an hour of waiting takes no time. The same seed
// gives the same run, but for who of several clients goes first when they wait for one
// claim: that is the runtime's choice.
//
// # The fault model
//
// A link is TCP: what arrives is a prefix of what was sent, in order. Within that,
// with the chances of a [Plan]:
//
//   - Every piece of data travels for a while of its own, and is cut into pieces as
//     small as one byte.
//   - A link has room for little; sends into a full one are short.
//   - A link is reset after some bytes in either direction: replies that are under
//     way are lost, and what the server has received, it still executes, up to
//     Plan.Ghost later.
//   - A server stops for a while: nothing is received, nothing answered, dials wait.
//   - A dial is refused.
//
// Not in the model: servers that forget or lie, the kernel's sockets and rings, the
// local state's disk. Other tests have those.
//
// # Lock order
//
// World.mu guards all state of the package and is a leaf.
package sim

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

// Plan says how often what goes wrong. Chances are 1 in n; 0: never.
type Plan struct {
	Name    string
	Delay   time.Duration // longest travel of a piece
	Slice   int           // largest piece in bytes; 0: any
	Room    int           // bytes that a link takes at once
	ResetIn int           // a link is reset, on average, after so many bytes
	Refuse  int           // dials
	Stop    time.Duration // longest silence of a server
	StopIn  int           // commands until a server stops
	Ghost   time.Duration // how long a server may hold what came over a link that was reset
}

// Plans are the fault plans of the tests.
var Plans = []Plan{
	{Name: "calm", Delay: 200 * time.Microsecond, Room: 1 << 20},
	{Name: "slices", Delay: 300 * time.Microsecond, Slice: 700, Room: 6000},
	{Name: "resets", Delay: time.Millisecond, Room: 64 << 10, ResetIn: 60_000, Refuse: 5, Ghost: 200 * time.Millisecond},
	{Name: "stops", Delay: time.Millisecond, Room: 64 << 10, Stop: 8 * time.Second, StopIn: 60, ResetIn: 400_000, Ghost: 3 * time.Second},
	{Name: "storm", Delay: 30 * time.Millisecond, Slice: 3000, Room: 20_000, ResetIn: 40_000, Refuse: 3, Stop: 12 * time.Second, StopIn: 100, Ghost: 5 * time.Second},
}

// World is a network and its servers.
type World struct {
	seed uint64
	plan Plan

	mu      sync.Mutex
	rng     *rand.Rand // guarded by mu
	calm    bool       // guarded by mu: no faults any more
	servers map[string]*server
	ports   int          // guarded by mu
	links   int          // guarded by mu
	faults  int          // guarded by mu
	ghosts  int          // guarded by mu: links whose commands were done after their end
	trace   hash.Hash64  // guarded by mu
	began   time.Time    // of the bubble
	log     func(string) // nil: none
}

var _ memcached.Network = (*World)(nil)

// NewWorld makes n servers. It must be called in a bubble.
func NewWorld(seed uint64, plan Plan, n int) *World {
	w := &World{
		seed: seed, plan: plan, rng: rand.New(rand.NewPCG(seed, 1)), calm: true, ports: 40000,
		servers: map[string]*server{}, trace: fnv.New64a(), began: time.Now(),
	}
	for i := range n {
		addr := fmt.Sprintf("127.0.0.1:%d", 11211+i)
		w.servers[addr] = newServer(w, addr)
	}
	return w
}

// Addrs are the servers' addresses.
func (w *World) Addrs() (out []string) {
	for i := range len(w.servers) {
		out = append(out, fmt.Sprintf("127.0.0.1:%d", 11211+i))
	}
	return out
}

// Begin lets the faults begin, End ends them.
func (w *World) Begin() { w.setCalm(false) }

// End ends the faults: what is under way still arrives.
func (w *World) End() { w.setCalm(true) }

func (w *World) setCalm(calm bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calm = calm
}

// Faults is how many faults were injected.
func (w *World) Faults() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults
}

// Ghosts is how many links had commands done after their end.
func (w *World) Ghosts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ghosts
}

// Trace is a sum over all that travelled between workers and servers, and when.
func (w *World) Trace() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trace.Sum64()
}

// note adds an event to the trace. Called under mu.
func (w *World) note(format string, args ...any) {
	line := fmt.Sprintf("%d ", time.Since(w.began)) + fmt.Sprintf(format, args...)
	_, _ = w.trace.Write([]byte(line))
	if w.log != nil {
		w.log(line)
	}
}

// oneIn says yes once in n times. Called under mu.
func (w *World) oneIn(n int) bool {
	if n == 0 || w.calm || w.rng.IntN(n) != 0 {
		return false
	}
	w.faults++
	return true
}

// after runs f, under mu, after a while. Times are spread over nanoseconds, so that
// no two things happen at once and chance has no say that the seed does not.
func (w *World) after(d time.Duration, f func()) {
	w.at(d+time.Duration(1+w.rng.IntN(1000)), f)
}

// at is after for what was given its very time already.
func (w *World) at(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		f()
	})
}

// travel is how long a piece is under way. Called under mu.
func (w *World) travel(rng *rand.Rand) time.Duration {
	return 10*time.Microsecond + time.Duration(rng.Int64N(int64(w.plan.Delay)+1))
}

// Jitter implements memcached.Network.
func (w *World) Jitter(most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(most) + 1))
}

// errRefused is what a dial gets that a server does not take.
var errRefused = errors.New("connection refused")

// Link implements memcached.Network.
func (w *World) Link(addr string) (memcached.Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.servers[addr]
	if s == nil || w.oneIn(w.plan.Refuse) {
		w.note("refused")
		return nil, errRefused
	}
	w.ports++
	w.links++
	l := &link{w: w, server: s, port: w.ports, lives: true, wake: make(chan struct{}, 1), session: &session{server: s}}
	l.rng = rand.New(rand.NewPCG(w.seed, uint64(1000+w.links)))
	s.ports[l.port] = true
	l.limit = -1
	if w.plan.ResetIn > 0 && !w.calm {
		l.limit = l.rng.IntN(2 * w.plan.ResetIn)
	}
	w.note("link %d", l.port-40000)
	return l, nil
}

// Wait implements memcached.Network.
func (w *World) Wait(d time.Duration, links []memcached.Link) {
	if len(links) == 0 {
		time.Sleep(max(d, time.Microsecond))
		return
	}
	for end := time.Now().Add(d); ; {
		for _, x := range links {
			if x.(*link).ready() {
				return
			}
		}
		left := time.Until(end)
		if left <= 0 {
			return
		}
		// One worker has few links: the first one is listened to, the others are
		// looked at in between, at times that depend on nothing but the clock.
		if len(links) == 1 {
			links[0].(*link).await(left)
			continue
		}
		time.Sleep(min(left, 100*time.Microsecond))
	}
}

// Dial implements memcached.Network. The control plane has no faults of its own; a
// server that is stopped keeps it waiting too.
func (w *World) Dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	s := w.servers[addr]
	w.ports++
	port := w.ports
	w.mu.Unlock()
	if s == nil {
		return nil, errRefused
	}
	ours, theirs := net.Pipe()
	go s.serveControl(theirs)
	return control{ours, port}, nil
}

// control is a connection with an address.
type control struct {
	net.Conn
	port int
}

// LocalAddr implements net.Conn.
func (c control) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: c.port} }

// listed is what `stats conns` tells. Called under mu.
func (s *server) listed() string {
	var b strings.Builder
	n := 0
	for port := range s.ports {
		n++
		fmt.Fprintf(&b, "STAT %d:addr tcp:127.0.0.1:%d\r\n", n, port)
	}
	return b.String() + "END\r\n"
}
