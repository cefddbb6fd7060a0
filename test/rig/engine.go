package rig

import (
	"testing"
	"time"
)

// Engine is what keeps the blocks of a test, with all that the fault matrix does to
// it: one server, the master that Sentinels watch, or the nodes of a cluster, on TCP.
// Its methods belong to the test's goroutine.
type Engine interface {
	// Kind names it in tests: memcached, redis, sentinel, cluster.
	Kind() string
	URL() string
	// Servers are the addresses of those that have blocks.
	Servers() []string
	// Stop freezes every server (SIGSTOP) and returns when all have stopped; Continue
	// lets them go on.
	Stop()
	Continue()
	// Empty makes all data vanish: servers come back without it at the same addresses.
	Empty()
	// Full takes the room for new blocks away, but for some megabytes; the returned
	// function gives it back.
	Full(mb int) (undo func())
	// Delete deletes the key of a block and says whether it was there.
	Delete(p Place) bool
	// Item and SetItem read and change what is stored of a block, behind kvbfs's back.
	Item(p Place) Item
	SetItem(p Place, it Item)
	// Items counts keys.
	Items() int64
	// Wire is the way to it through a proxy (one per server). A master that Sentinels
	// watch has none: they say where it is.
	Wire(t testing.TB) *Wire
}

// Wire is a Proxy for each server of an engine.
type Wire struct {
	URL     string
	proxies []*Proxy
}

// Refuse makes new connections fail and cuts those that there are; Accept ends that.
func (w *Wire) Refuse() {
	for _, p := range w.proxies {
		p.Refuse()
		p.Cut()
	}
}

// Accept listens again after Refuse.
func (w *Wire) Accept() error {
	for _, p := range w.proxies {
		if err := p.Accept(); err != nil {
			return err
		}
	}
	return nil
}

// Mute makes the connections that there are swallow all that they carry.
func (w *Wire) Mute() {
	for _, p := range w.proxies {
		p.Mute()
	}
}

// memcachedEngine is a memcached as an Engine.
type memcachedEngine struct {
	*Memcached
}

// Engine returns the server as an Engine.
func (m *Memcached) Engine() Engine { return memcachedEngine{m} }

// Kind implements Engine.
func (memcachedEngine) Kind() string { return "memcached" }

// Servers implements Engine.
func (m memcachedEngine) Servers() []string { return []string{m.Addr} }

// Empty implements Engine.
func (m memcachedEngine) Empty() { m.Memcached.Kill(); m.Memcached.Start() }

// Full implements Engine: a memcached does not shrink, so the test starts it small.
func (memcachedEngine) Full(int) func() { return func() {} }

// Delete implements Engine.
func (m memcachedEngine) Delete(p Place) bool { return m.Memcached.Delete(p.Key) }

// Item implements Engine.
func (m memcachedEngine) Item(p Place) Item { return m.Memcached.Item(p.Key) }

// SetItem implements Engine.
func (m memcachedEngine) SetItem(p Place, it Item) { m.Memcached.SetItem(p.Key, it) }

// Items implements Engine.
func (m memcachedEngine) Items() int64 { return m.Stat("curr_items") }

// Wire implements Engine.
func (m memcachedEngine) Wire(t testing.TB) *Wire {
	p := NewProxy(t, m.Addr, 0)
	return &Wire{URL: p.URL(), proxies: []*Proxy{p}}
}

var _ Engine = memcachedEngine{}

// settle is how long a cluster may take until it serves again after all its nodes
// were stopped.
const settle = 30 * time.Second
