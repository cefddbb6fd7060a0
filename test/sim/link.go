package sim

import (
	"io"
	"math/rand/v2"
	"time"
)

// link is a connection of the data plane. All is guarded by World.mu, but for the
// channel, which wakes the one who waits.
type link struct {
	w       *World
	server  *server
	port    int
	session *session
	wake    chan struct{}
	rng     *rand.Rand // its own, so that links do not depend on each other's order

	lives    bool // at our end
	out      int  // bytes under way to the server
	in       []byte
	lastIn   time.Time // when what was sent last arrives there,
	lastBack time.Time // and here
	limit    int       // bytes, in both directions, until a reset; negative: never
	stuck    bool      // what is sent arrives after the end
	doomed   bool      // the server's end was reset, and here it is about to be
	dead     bool      // reset: nothing arrives here any more
	held     []byte    // arrived at a server that is stopped
}

// Port implements memcached.Link.
func (l *link) Port() int { return l.port }

func (l *link) ready() bool {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return len(l.in) > 0 || l.dead
}

// await waits until something happens, or for d.
func (l *link) await(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-l.wake:
	case <-timer.C:
	}
}

// signal wakes who waits. Called under mu.
func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Send implements memcached.Link.
func (l *link) Send(b []byte) (int, error) {
	w := l.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.dead {
		return 0, io.ErrClosedPipe
	}
	n := min(len(b), max(0, w.plan.Room-l.out))
	for rest := b[:n]; len(rest) > 0; {
		k := len(rest)
		if w.plan.Slice > 0 && !w.calm {
			k = min(k, 1+l.rng.IntN(w.plan.Slice))
		}
		piece := append([]byte(nil), rest[:k]...)
		rest = rest[k:]
		l.spend(len(piece))
		l.out += len(piece)
		w.at(l.order(&l.lastIn), func() { l.arrive(piece) })
	}
	return n, nil
}

// order is when a piece arrives: after those before it. Called under mu.
func (l *link) order(last *time.Time) time.Duration {
	now := time.Now()
	at := now.Add(l.w.travel(l.rng))
	if !at.After(*last) {
		at = last.Add(2*time.Microsecond + l.blur())
	}
	*last = at
	return at.Sub(now)
}

// blur keeps what happens on different links apart: chance between two things of one
// instant would be the runtime's.
func (l *link) blur() time.Duration { return time.Duration(l.rng.Int64N(100_000)) }

// spend counts bytes against the limit. At it the line breaks: what is sent from then
// on is stuck somewhere, until both ends have noticed. Called under mu.
func (l *link) spend(n int) {
	if l.limit < 0 {
		return
	}
	if l.limit -= n; l.limit > 0 {
		return
	}
	l.limit, l.stuck = -1, true
	l.w.faults++
	l.w.at(time.Duration(l.rng.Int64N(int64(50*time.Millisecond))), func() { l.reset("reset") })
}

// reset ends the link for us. What the server has, it does, some time later; only
// then it forgets the link. Called under mu.
func (l *link) reset(why string) {
	if l.dead {
		return
	}
	w := l.w
	w.note("%s %d", why, l.port-40000)
	l.dead = true // what has come can still be read
	l.signal()
	ghost := time.Duration(0)
	if w.plan.Ghost > 0 && !w.calm {
		ghost = time.Duration(l.rng.Int64N(int64(w.plan.Ghost)))
	}
	l.lastIn = maxTime(l.lastIn, time.Now()).Add(2*time.Microsecond + l.blur())
	w.at(time.Until(l.lastIn)+ghost, l.server.whenRunning(func() {
		if l.execute(l.held); len(l.held) > 0 {
			w.ghosts++
			w.note("ghost %d of %d bytes", l.port-40000, len(l.held))
		}
		l.held = nil
		delete(l.server.ports, l.port)
		w.note("gone %d", l.port-40000)
	}))
}

// arrive is the arrival of a piece at the server.
func (l *link) arrive(piece []byte) {
	l.out -= len(piece)
	l.signal() // there is room again
	if l.dead || l.stuck {
		l.held = append(l.held, piece...) // done late, see reset
		return
	}
	s := l.server
	if s.stopped() || len(l.held) > 0 {
		if len(l.held) == 0 {
			s.whenContinued(func() {
				if l.dead || l.stuck {
					return
				}
				held := l.held
				l.held = nil
				l.execute(held)
			})
		}
		l.held = append(l.held, piece...)
		return
	}
	l.execute(piece)
}

// execute gives bytes to the server and sends its answers back. Called under mu.
func (l *link) execute(b []byte) {
	if len(b) == 0 {
		return
	}
	reply := l.session.feed(b)
	if l.dead || l.doomed || l.stuck {
		return
	}
	for len(reply) > 0 {
		k := min(len(reply), 16<<10)
		if l.w.plan.Slice > 0 && !l.w.calm {
			k = min(k, 1+l.rng.IntN(l.w.plan.Slice))
		}
		piece := reply[:k]
		reply = reply[k:]
		if l.limit >= 0 && l.limit <= len(piece) {
			// In the middle of a piece, behind all that is under way.
			piece, l.doomed = piece[:l.limit], true
		}
		l.limit -= min(len(piece), max(l.limit, 0))
		l.w.at(l.order(&l.lastBack), func() {
			if l.dead {
				return
			}
			l.w.note("in %d %d", l.port-40000, len(piece))
			l.in = append(l.in, piece...)
			l.signal()
		})
		if l.doomed {
			l.w.faults++
			l.w.at(l.order(&l.lastBack), func() { l.reset("cut") })
			return
		}
	}
}

// Receive implements memcached.Link.
func (l *link) Receive(b []byte, wait time.Duration) (int, error) {
	for end := time.Now().Add(wait); ; {
		l.w.mu.Lock()
		switch {
		case len(l.in) > 0:
			n := copy(b, l.in)
			l.in = l.in[n:]
			l.w.mu.Unlock()
			return n, nil
		case l.dead:
			l.w.mu.Unlock()
			return 0, io.EOF
		}
		l.w.mu.Unlock()
		left := time.Until(end)
		if left <= 0 {
			return 0, nil
		}
		l.await(left)
	}
}

// Close implements memcached.Link.
func (l *link) Close() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.reset("close")
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
