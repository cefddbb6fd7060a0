package redis

// A slot that moves has keys on two nodes. What is moved to the new one already, and what
// an ASK leads there, is nowhere else, though by the map this node has nothing of the
// slot. So the slot is its guest until it is its own, or moves no more:
//
//   - Each flush asks the node too.
//   - If it comes back with another past, the guest's blocks are among those that are read
//     back: by way of the slot's own node, which knows where each of them is.
//   - If the slot ends up elsewhere (its keys were moved back, or another node took the
//     place of the one that it moved to), whoever has it then is read back (doubt): what
//     had been acknowledged as the guest's may have been lost on the way.
//
// Guests come from ASK (lodge) and from looks at the cluster, and go with looks only, as
// nobody else tells that a move was given up; but for one that arrives, which a MOVED tells.
//
// In all of this a node is doubted before others can see what makes it doubtful, and a guest
// goes after that: else a flush in between would ask neither.

// guest says where keys of a slot are that its own node has no more.
type guest struct {
	node  *node  // where they are
	from  *node  // which had the slot
	since uint64 // only a look that began later tells whether the slot still moves
}

// lodge notes that the slot's own node answered with ASK. False: to another node than before,
// so that the slot's own node must be asked again, which has to show that nothing was lost.
func (s *Store) lodge(slot int, from, to *node) bool {
	if g := s.guests[slot].Load(); g != nil && g.node == to && g.from == from && g.since == s.looks.Load() {
		return true
	}
	s.mapping.Lock()
	defer s.mapping.Unlock()
	now := &guest{node: to, from: from, since: s.looks.Load()}
	old := s.guests[slot].Load()
	if old != nil && old.node != to && old.node != from { // from: it has arrived since, and moves on
		s.lost(old, from)
		s.guests[slot].Store(now)
		return false
	}
	s.checkIn(slot, now)
	if s.slots[slot].Load() != from { // who answered and the map differ
		s.lookAround()
	}
	return true
}

// checkIn makes a slot a guest. mapping is held.
func (s *Store) checkIn(slot int, g *guest) {
	if s.guests[slot].Load() == nil {
		s.lodged.Add(1) // before it can be found: see lodges
	}
	s.guests[slot].Store(g)
}

// checkOut ends a guest. mapping is held.
func (s *Store) checkOut(slot int) {
	if s.guests[slot].Swap(nil) != nil {
		s.lodged.Add(-1)
	}
}

// lost has who has the slot show what it has, because it is not, or no more, on the way to
// the guest's node. What that one acknowledges from now on, to who was led there before,
// does not count.
func (s *Store) lost(g *guest, owner *node) {
	g.node.era.Add(1)
	owner.doubt()
}

// arrives is told of a slot that is about to be a node's, as a MOVED says. If that is
// neither where it was nor where it moved to, it is doubted; a look tells what became of
// the move. mapping is held.
func (s *Store) arrives(slot int, at *node) {
	if g := s.guests[slot].Load(); g != nil && at != g.node && at != g.from {
		at.doubt()
		s.guests[slot].Store(&guest{node: g.node, from: at, since: s.looks.Load()})
	}
}

// arrived is arrives for when the slot is the node's. mapping is held.
func (s *Store) arrived(slot int, at *node) {
	if g := s.guests[slot].Load(); g != nil && at == g.node {
		s.checkOut(slot)
	}
}

// review has the guests be what a look says. The slots are where it says afterwards, owners
// being who has them then; nodes are those of its addresses. It returns the slots whose
// guests are to be checked out then, as they arrive. mapping is held.
func (s *Store) review(look uint64, m *clusterMap, owners func(slot int) *node, nodes map[string]*node) (arrive []int) {
	for slot := range s.guests {
		owner, g := owners(slot), s.guests[slot].Load()
		own := m.own[owner]
		var target *node // where the slot moves
		if own != nil && own.state[slot] == slotMoves {
			target = nodes[own.to[slot]]
		}
		switch {
		case owner == nil:
		case g == nil || owner == g.node && target != nil:
			if target != nil && target != owner {
				s.checkIn(slot, &guest{node: target, from: owner, since: s.looks.Load()})
			}
		case owner == g.node: // whenever the look began: it is asked as who has the slot now
			arrive = append(arrive, slot)
		case look <= g.since:
		case target != nil && target != g.node:
			s.lost(g, owner)
			s.guests[slot].Store(&guest{node: target, from: owner, since: s.looks.Load()})
		case own != nil && own.state[slot] == slotRests && m.hasLeft(slot, g.node, own):
			s.lost(g, owner)
			s.checkOut(slot)
		case owner != g.from: // it has taken the place of who had the slot, or is the next
			owner.doubt()
			s.guests[slot].Store(&guest{node: g.node, from: owner, since: s.looks.Load()})
		}
	}
	return arrive
}

// doubt has the node show what we remember before it is used again.
func (n *node) doubt() {
	// In this order: a connection that is greeted in between is outdated at once.
	n.doubts.Add(1)
	n.era.Add(1)
}

// lodges says whether the node has a guest.
func (n *node) lodges() bool {
	s := n.store
	if s.lodged.Load() == 0 {
		return false
	}
	for i := range s.guests {
		if g := s.guests[i].Load(); g != nil && g.node == n {
			return true
		}
	}
	return false
}

// lodgedAt says whether a slot is the guest of a node.
func (s *Store) lodgedAt(slot int, n *node) bool {
	g := s.guests[slot].Load()
	return g != nil && g.node == n
}

// concerns says whether a flush must ask the node: some key is on it, or may be. A guest that
// arrives is seen as the one or the other.
func (n *node) concerns() bool { return n.lodges() || n.serves() }

// asker returns the node that knows where a key is which should be on n: n itself unless
// its slot is a guest.
func (n *node) asker(key []byte) *node {
	if n.store.cfg.Mode != Cluster {
		return n
	}
	if owner := n.store.slots[keySlot(key)].Load(); owner != nil {
		return owner
	}
	return n
}
