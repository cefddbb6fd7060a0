package redis

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/wire"
)

// lookPause is how often it is looked at most who serves what.
const lookPause = 100 * time.Millisecond

// lookTime bounds one look.
const lookTime = 2 * time.Second

// lookAround begins to look again who serves what, unless that was done a moment
// ago or nothing can move.
func (s *Store) lookAround() {
	now := wire.Clock()
	last := s.looking.Load()
	if !s.moves() || now-last < int64(lookPause) || !s.looking.CompareAndSwap(last, now) {
		return
	}
	s.helpers.Go(func(ctx context.Context) { s.lookNow(ctx) })
}

// lookNow looks again who serves what. What it does not find out stays as it was.
func (s *Store) lookNow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if s.cfg.Mode == Sentinel {
		_ = s.lookMaster(ctx)
	} else if s.cfg.Mode == Cluster {
		_ = s.lookCluster(ctx)
	}
}

// nodeAt returns the node of an address, which may be new.
func (s *Store) nodeAt(ctx context.Context, addr string) (*node, error) {
	for _, n := range *s.nodes.Load() {
		if n.addr == addr {
			return n, nil
		}
	}
	n, err := s.newNode(ctx, 0, addr)
	if err != nil {
		return nil, err
	}
	known := s.add(n)
	if known != n {
		_ = n.admin.Close()
	}
	return known, nil
}

// serves says whether some key is on the node now.
func (n *node) serves() bool {
	switch n.store.cfg.Mode {
	case Sentinel:
		return n.store.master.Load() == n
	case Cluster:
		for i := range n.store.slots {
			if n.store.slots[i].Load() == n {
				return true
			}
		}
		return false
	}
	return true
}

// redirected reads a MOVED or ASK line of a node and returns where it leads; from
// itself if nowhere.
func (s *Store) redirected(from *node, line []byte) (to *node, asking bool) {
	slot, addr, ok := redirection(line)
	if !ok || s.cfg.Mode != Cluster {
		return from, false
	}
	addr = hostPort(addr, from.addr)
	if known, ok := s.aliases.Load(addr); ok {
		addr = known.(string)
	}
	ctx, cancel := context.WithTimeout(s.helpers.Life(), time.Second)
	defer cancel()
	to, err := s.nodeAt(ctx, addr)
	if err != nil {
		return from, false
	}
	if classify(line) == refuseAsk {
		return to, true
	}
	s.mapping.Lock()
	s.told.Add(1) // not before: a look that began in between would count as later
	s.arrives(int(slot), to)
	// Not from: a node that is behind may tell of a slot that was another's meanwhile.
	if old := s.slots[slot].Swap(to); old != nil && old != to && !old.serves() {
		old.ousted()
	}
	s.arrived(int(slot), to)
	s.mapping.Unlock()
	s.lookAround()
	return to, false
}

// domain is which keys a node has at one moment.
type domain struct {
	all   bool             // or none
	slots *[slotCount]bool // of a node of a cluster
}

func (d domain) has(key []byte) bool {
	if d.slots == nil {
		return d.all
	}
	return d.slots[keySlot(key)]
}

// domain returns what the node has now, of the keys of its server; with guests, also of slots
// that are not its own (yet).
func (n *node) domain(guests bool) domain {
	s := n.store
	s.mapping.Lock()
	defer s.mapping.Unlock()
	switch s.cfg.Mode {
	case Sentinel:
		return domain{all: s.master.Load() == n}
	case Cluster:
		var mine [slotCount]bool
		for i := range s.slots {
			g := s.guests[i].Load()
			mine[i] = s.slots[i].Load() == n || guests && g != nil && g.node == n
		}
		return domain{slots: &mine}
	}
	return domain{all: true}
}

// hearsay says that a MOVED told of a slot, and that what else moved with it may not be
// in the map yet.
func (s *Store) hearsay() bool { return s.told.Load() != s.mapped.Load() }

// reroute moves what is queued and belongs elsewhere by now; what is in flight stays, and
// with asked what an ASK led here. It returns true if nothing is left in the queue.
func (c *conn) reroute(asked bool) bool {
	for range c.queue.Len() {
		r := c.queue.Pop()
		to := c.place(r)
		switch {
		case to == c.node || asked && r.asking && c.node.store.lodgedAt(keySlot(r.key[:]), c.node):
			c.queue.Push(r)
		case r.op == nil:
			c.ch.unserved = true
			c.ch.complete(r, nil)
		default:
			r.asking = false
			c.ch.queue(to, r)
		}
	}
	if c.queue.Len() > 0 {
		return false
	}
	if !c.node.concerns() {
		c.node.silence.Speaks() // nobody waits for it any more
	}
	return true
}

// unask has what an ASK led here ask its own node again, once this one did not serve it:
// the slot may have stayed there, or moved on.
func (c *conn) unask() {
	for _, r := range c.queue.Rest() {
		if r.asking {
			r.asking, r.hops = false, 0 // whoever is at fault, it is not the next one
		}
	}
}

// place returns the node that has a request's key now; nil for a flush that need not ask
// the node any more.
func (c *conn) place(r *request) *node {
	if r.op == nil {
		if c.node.concerns() {
			return c.node
		}
		return nil
	}
	return c.node.store.route(r.key[:], c.node.server)
}

// lostItsPlace says whether something that is unanswered belongs elsewhere by now.
func (c *conn) lostItsPlace() bool {
	for _, r := range c.flight.Rest() {
		if c.place(r) != c.node {
			return true
		}
	}
	return false
}

// options are go-redis's for one address. It never repeats a command: a change
// may have been executed.
func (s *Store) options(addr string) *goredis.Options {
	o := &goredis.Options{
		Network: "tcp", Addr: addr, ClientName: s.clientName + "-control", Protocol: 2,
		Username: s.cfg.User, Password: s.cfg.Password, DB: s.cfg.DB, TLSConfig: s.tlsFor(addr),
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, PoolSize: 8, DisableIdentity: true,
		DialTimeout: s.cfg.TryTimeout, ReadTimeout: s.cfg.TryTimeout, WriteTimeout: s.cfg.TryTimeout,
	}
	if strings.HasPrefix(addr, "/") {
		o.Network = "unix"
	}
	return o
}

// tlsFor returns the configuration of TLS for one address: its host is the name
// that the certificate must have, unless another one is configured.
func (s *Store) tlsFor(addr string) *tls.Config {
	if s.cfg.TLS == nil {
		return nil
	}
	c := s.cfg.TLS.Clone()
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return c
}

// findMaster makes the one server of a Sentinel store.
func (s *Store) findMaster(ctx context.Context) error {
	if err := s.lookMaster(ctx); err != nil {
		return err
	}
	s.addServer("sentinel:" + s.cfg.Master)
	return nil
}

// lookMaster asks the Sentinels, in turn, who the master is.
func (s *Store) lookMaster(ctx context.Context) error {
	last := error(kvstore.ErrUnreachable)
	for _, addr := range s.cfg.Servers {
		c := goredis.NewSentinelClient(&goredis.Options{
			Addr: addr, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true,
			DialTimeout: time.Second, ReadTimeout: time.Second,
		})
		at, err := c.GetMasterAddrByName(ctx, s.cfg.Master).Result()
		_ = c.Close()
		if err != nil || len(at) != 2 {
			if err == goredis.Nil {
				err = fmt.Errorf("knows no master named %q", s.cfg.Master)
			}
			last = fmt.Errorf("%w: sentinel %s: %w", kvstore.ErrUnreachable, addr, err)
			continue
		}
		n, err := s.nodeAt(ctx, net.JoinHostPort(at[0], at[1]))
		if err != nil {
			return err
		}
		s.mapping.Lock()
		if old := s.master.Swap(n); old != nil && old != n {
			old.ousted()
		}
		s.mapping.Unlock()
		return nil
	}
	return &kvstore.OpError{Op: "find master " + s.cfg.Master, Err: last}
}

// clusterName is what the one server of a cluster is called: its nodes come and go.
const clusterName = "cluster"

// findCluster makes the one server of a cluster.
func (s *Store) findCluster(ctx context.Context) error {
	for _, addr := range s.cfg.Servers {
		if _, err := s.nodeAt(ctx, addr); err != nil {
			return err
		}
	}
	s.addServer(clusterName)
	return s.lookCluster(ctx)
}

// lookCluster asks all known nodes for their map of the cluster. Of what they say
// about a slot the newest counts: a node that was away tells old things.
func (s *Store) lookCluster(ctx context.Context) error {
	var mu sync.Mutex // guards m, last
	m := newClusterMap()
	last := error(kvstore.ErrUnreachable)
	look, told := s.looks.Add(1), s.told.Load()
	var wg sync.WaitGroup
	for _, n := range *s.nodes.Load() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookTime/2)
			defer cancel()
			text, err := n.admin.ClusterNodes(ctx).Result()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				last = fmt.Errorf("%w: %s: %w", kvstore.ErrUnreachable, n.addr, err)
				return
			}
			m.read(text, n)
		})
	}
	wg.Wait()
	if m.claims == [slotCount]claim{} {
		return &kvstore.OpError{Op: "read the map of the cluster", Server: s.cfg.Servers[0], Err: last}
	}
	if err := s.adopt(ctx, m, look, told); err != nil {
		return err
	}
	for slot := range s.slots {
		if s.slots[slot].Load() == nil {
			return &kvstore.OpError{Op: "read the map of the cluster", Server: s.cfg.Servers[0],
				Err: fmt.Errorf("%w: no node has slot %d: create the cluster first (redis-cli --cluster create)", kvstore.ErrUnreachable, slot)}
		}
	}
	return nil
}

// adopt has slots be where the claims of a look say. They change at one moment for who reads
// a node back, which must not find half of what moved; and a look is nothing worth once
// one that began later was believed.
func (s *Store) adopt(ctx context.Context, m *clusterMap, look, told uint64) error {
	for name, addr := range m.aliases {
		s.aliases.Store(name, addr)
	}
	nodes, bad := s.nodesOf(ctx, m)
	owners := func(slot int) *node {
		if n := nodes[m.claims[slot].addr]; n != nil {
			return n
		}
		return s.slots[slot].Load()
	}
	s.mapping.Lock()
	defer s.mapping.Unlock()
	if look < s.looked {
		return bad
	}
	s.looked = look
	arrive := s.review(look, m, owners, nodes)
	left := map[*node]bool{} // nodes that had a slot which is elsewhere now
	for slot := range s.slots {
		if n := owners(slot); n != nil && s.slots[slot].Load() != n {
			left[s.slots[slot].Swap(n)] = true
		}
	}
	for n := range left {
		if n != nil && !n.serves() { // not slots that move one by one
			n.ousted()
		}
	}
	for _, slot := range arrive {
		s.checkOut(slot)
	}
	if bad == nil {
		s.mapped.Store(told)
	}
	return bad
}

// nodesOf returns the nodes of the addresses of a map, but for those of which an error tells.
func (s *Store) nodesOf(ctx context.Context, m *clusterMap) (nodes map[string]*node, bad error) {
	nodes = map[string]*node{"": nil}
	find := func(addr string) {
		if _, ok := nodes[addr]; ok {
			return
		}
		n, err := s.nodeAt(ctx, addr)
		if err != nil {
			n, bad = nil, err // its slots stay where they are
		}
		nodes[addr] = n
	}
	for i := range m.claims {
		find(m.claims[i].addr)
	}
	spoke := maps.Clone(m.own)
	for _, own := range spoke {
		for _, addr := range own.to {
			find(addr)
		}
		if n := nodes[own.addr]; n != nil && m.own[n] == nil {
			m.own[n] = own // it was asked by another name
		}
	}
	return nodes, bad
}

// Each master of a cluster must prove itself, and slots move between them. So the
// sentinel has a copy in each 16th slot, under its name and a tag in braces that
// leads there; a node is asked for one that it has.
const (
	copyEvery = 16
	copies    = slotCount / copyEvery
)

// slotTags returns for each slot a word whose hash slot it is. They stay what they are:
// the sentinel's copies are under them.
var slotTags = sync.OnceValue(func() *[slotCount]string {
	var tags [slotCount]string
	for i, found := 0, 0; found < slotCount; i++ {
		word := strconv.FormatInt(int64(i), 36)
		if slot := keySlot(word); tags[slot] == "" {
			tags[slot] = word
			found++
		}
	}
	return &tags
})

// tagged returns the key that begins with a name and is in a slot.
func tagged(name string, slot int) string { return name + "{" + slotTags()[slot] + "}" }

// copyKey is the key of a name's copy in slot i*copyEvery.
func copyKey(name string, i int) string { return tagged(name, i*copyEvery) }

// markKey returns where a flush writes on this node: with ASKING if it has only guests. A
// node with few slots may have none with a copy.
func (n *node) markKey() (key string, asking bool) {
	key = n.slotKey(markName)
	for slot := 0; key == "" && slot < slotCount; slot++ {
		if n.store.slots[slot].Load() == n {
			key = tagged(markName, slot)
		}
	}
	if key != "" || n.store.lodged.Load() == 0 {
		return key, false
	}
	for slot := range n.store.guests {
		if g := n.store.guests[slot].Load(); g != nil && g.node == n {
			return tagged(markName, slot), true
		}
	}
	return "", false
}

// slotKey returns a key that begins with a name and is on this node.
func (n *node) slotKey(name string) string {
	if n.store.cfg.Mode != Cluster {
		return name
	}
	from := int(n.copyFrom.Load())
	for k := range copies {
		i := (from + k) % copies
		if n.store.slots[i*copyEvery].Load() == n {
			return copyKey(name, i)
		}
	}
	return ""
}

// passOver has slotKey look behind the slot that an ASK names: what is asked for there
// is on its way to another node, which may take long or end half-way.
func (n *node) passOver(line []byte) {
	if slot, _, ok := redirection(line); ok && classify(line) == refuseAsk {
		n.copyFrom.Store(int32(slot/copyEvery + 1))
	}
}

// slotSentinel returns a copy of the sentinel that this node of a cluster has; nil:
// it has none, as it has too few slots.
func (s *Store) slotSentinel(n *node) (key string, value []byte) {
	srv := s.servers[n.server]
	if srv.sentinelKey == "" {
		return "", nil
	}
	if key = n.slotKey(srv.sentinelKey); key == "" {
		return "", nil
	}
	return key, srv.sentinelValue
}
