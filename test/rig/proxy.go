package rig

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
)

// Proxy is a wire to a server that takes Delay for everything that travels back.
// What arrives together is delayed together, so a pipelined batch costs one
// delay and requests one at a time cost one each: the shape of a real network.
type Proxy struct {
	Addr string

	l      net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	delay time.Duration     // guarded by mu
	gate  chan struct{}     // guarded by mu: answers wait until it is closed; nil: they pass
	held  int64             // guarded by mu: bytes of answers that came while they wait
	conns map[net.Conn]bool // guarded by mu
	muted map[net.Conn]bool // guarded by mu: what they bring goes nowhere
}

// NewProxy listens on a free port and forwards to target (host:port).
func NewProxy(t testing.TB, target string, delay time.Duration) *Proxy {
	t.Helper()
	// A port that stays free while the proxy refuses.
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(storetest.FreePort(t, 0))))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), l: l, target: target, delay: delay, conns: map[net.Conn]bool{}, muted: map[net.Conn]bool{}}
	p.wg.Add(1)
	go p.accept(l)
	t.Cleanup(p.Close)
	return p
}

// Refuse makes new connections fail at once, as where no server runs; Accept ends
// that.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l.Close()
}

// Accept listens again after Refuse.
func (p *Proxy) Accept() error {
	l, err := net.Listen("tcp", p.Addr)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l = l
	p.wg.Add(1)
	go p.accept(l)
	return nil
}

// Mute makes the connections that there are swallow all that they carry, as a
// firewall that forgot them does. New ones work.
func (p *Proxy) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		p.muted[c] = true
	}
}

func (p *Proxy) mute(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.muted[c]
}

// URL is the store's URL by way of the proxy.
func (p *Proxy) URL() string { return "memcached://" + p.Addr }

// SetDelay changes the delay of what arrives from now on.
func (p *Proxy) SetDelay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Hold keeps all answers back until Release.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate, p.held = make(chan struct{}), 0
}

// Held is how many bytes of answers have come since Hold or Pass.
func (p *Proxy) Held() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// Pass lets through what has come since Hold and the last Pass, and no more.
func (p *Proxy) Pass() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate != nil {
		close(p.gate)
		p.gate, p.held = make(chan struct{}), 0
	}
}

// Release lets the answers pass again. Without Hold it does nothing.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate != nil {
		close(p.gate)
		p.gate = nil
	}
}

// Cut closes all connections, in the middle of whatever they carry.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Close ends the proxy and waits for its goroutines.
func (p *Proxy) Close() {
	p.Refuse()
	p.Cut()
	p.Release()
	p.wg.Wait()
}

func (p *Proxy) accept(l net.Listener) {
	defer p.wg.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.target)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[s] = true, true
		p.mu.Unlock()
		p.wg.Add(2)
		go p.pump(s, c, false)
		go p.pump(c, s, true)
	}
}

// buffers are used again, and large: who measures through a Proxy measures neither the
// collector nor its system calls.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

type packet struct {
	buf  *[]byte // goes back to buffers
	data []byte  // of it
	due  time.Time
	gate chan struct{}
}

// pump copies from one side to the other; delayed data keeps its order and its
// spacing, since each piece has its own due time.
func (p *Proxy) pump(dst, src net.Conn, delayed bool) {
	defer p.wg.Done()
	defer func() {
		dst.Close()
		src.Close()
		p.mu.Lock()
		delete(p.conns, src)
		delete(p.muted, src)
		p.mu.Unlock()
	}()
	if !delayed {
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			if p.mute(src) {
				continue
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	queue := make(chan packet, 4096)
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		for pkt := range queue {
			time.Sleep(time.Until(pkt.due))
			if pkt.gate != nil {
				<-pkt.gate
			}
			_, err := dst.Write(pkt.data)
			buffers.Put(pkt.buf)
			if err != nil {
				src.Close()
				break
			}
		}
		for range queue { // the reader must never block on a dead writer
		}
	}()
	defer close(queue)
	for {
		buf := buffers.Get().(*[]byte)
		n, err := src.Read(*buf)
		if n > 0 && !p.mute(src) {
			p.mu.Lock()
			pkt := packet{buf, (*buf)[:n], time.Now().Add(p.delay), p.gate}
			if p.gate != nil {
				p.held += int64(n)
			}
			p.mu.Unlock()
			queue <- pkt
		}
		if err != nil {
			return
		}
	}
}
