package rig

import (
	"net"
	"sync"
	"testing"
	"time"
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
	conns map[net.Conn]bool // guarded by mu
	muted map[net.Conn]bool // guarded by mu: what they bring goes nowhere
}

// NewProxy listens on a free port and forwards to target (host:port).
func NewProxy(t testing.TB, target string, delay time.Duration) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
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

type packet struct {
	data []byte
	due  time.Time
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
			if _, err := dst.Write(pkt.data); err != nil {
				src.Close()
				break
			}
		}
		for range queue { // the reader must never block on a dead writer
		}
	}()
	defer close(queue)
	for {
		buf := make([]byte, 64<<10)
		n, err := src.Read(buf)
		if n > 0 && !p.mute(src) {
			p.mu.Lock()
			due := time.Now().Add(p.delay)
			p.mu.Unlock()
			queue <- packet{buf[:n], due}
		}
		if err != nil {
			return
		}
	}
}
