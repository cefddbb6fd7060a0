package sim

import (
	"context"
	"net"

	"github.com/kvbfs/kvbfs/kvstore/memcached"
)

// Process is the network as one process has it: until it is killed.
type Process struct {
	*World
	killed bool       // guarded by World.mu, as the rest
	links  []*link    // all that it ever had
	conns  []net.Conn // of the control plane
}

var _ memcached.Network = (*Process)(nil)

// Process makes the network of a new process.
func (w *World) Process() *Process { return &Process{World: w} }

// Link implements memcached.Network.
func (p *Process) Link(addr string) (memcached.Link, error) {
	if p.isKilled() {
		return nil, errRefused
	}
	made, err := p.World.Link(addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := made.(*link)
	if p.killed {
		l.reset("killed")
	}
	p.links = append(p.links, l)
	return l, nil
}

// Dial implements memcached.Network.
func (p *Process) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if p.isKilled() {
		return nil, errRefused
	}
	c, err := p.World.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		c.Close()
		return nil, errRefused
	}
	p.conns = append(p.conns, c)
	return c, nil
}

func (p *Process) isKilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

// Kill ends all of the process's connections at once: nothing that it does from now on
// reaches a server. What a server was sent before, it may still do (Plan.Ghost). f is
// called at that very moment: it sees what the process leaves behind on its machine.
func (p *Process) Kill(f func()) {
	p.mu.Lock()
	p.killed = true
	p.note("kill")
	f()
	for _, l := range p.links {
		l.reset("killed")
	}
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
