package redis

// A slot that moves has keys on two nodes. What an ASK leads to the one that it moves to
// is acknowledged there and is nowhere else, though the map does not say that this node has
// anything of ours. So the slot is its guest until it is its own, or moves no more:
//
//   - Each flush asks the node too.
//   - If it comes back with another past, the guest's blocks are among those that are read
//     back: by way of the slot's own node, which knows where each of them is.
//   - If the slot ends up elsewhere (its keys were moved back, or another node took the
//     place of the one that it moved to), whoever has it then is read back (doubt): what
//     had been acknowledged as the guest's may have been lost on the way.

// guest says where the changes of a slot go that its own node answered with ASK.
type guest struct {
	node  *node  // where the ASK led
	from  *node  // which had the slot
	since uint64 // a look that began later tells whether the slot still moves
}

// lodge notes that a change of a slot is about to be sent to a node because the slot's own
// answered with ASK.
func (s *Store) lodge(slot int, from, to *node) {
	look := s.looks.Load()
	if g := s.guests[slot].Load(); g != nil && g.node == to && g.from == from && g.since == look {
		return
	}
	s.mapping.Lock()
	defer s.mapping.Unlock()
	if s.slots[slot].Load() == to {
		return // it has arrived
	}
	switch old := s.guests[slot].Swap(&guest{node: to, from: from, since: look}); {
	case old == nil:
		s.lodged.Add(1)
	case old.node != to: // which of the two moves was given up nobody told
		from.doubt()
	}
}

// checkOut ends a guest. mapping is held.
func (s *Store) checkOut(slot int) {
	if s.guests[slot].Swap(nil) != nil {
		s.lodged.Add(-1)
	}
}

// arrived ends the guest of a slot that is a node's now, as a MOVED told. mapping is held.
func (s *Store) arrived(slot int, at *node) {
	switch g := s.guests[slot].Load(); {
	case g == nil || at == g.from:
	case at == g.node:
		s.checkOut(slot)
	default:
		s.checkOut(slot)
		at.doubt()
	}
}

// checkOutAll ends the guests of which a look says that they are over. mapping is held, and
// slots are where the look says; nodes are those of its addresses.
func (s *Store) checkOutAll(look uint64, m *clusterMap, nodes map[string]*node) {
	if s.lodged.Load() == 0 {
		return
	}
	says := map[*node]*[slotCount]slotState{}
	for addr, own := range m.own {
		says[nodes[addr]] = own
	}
	for slot := range s.guests {
		g, owner := s.guests[slot].Load(), s.slots[slot].Load()
		switch {
		case g == nil || owner == nil:
		case owner == g.node:
			s.checkOut(slot)
		case look <= g.since:
		case owner != g.from, says[owner] != nil && says[owner][slot] == slotRests:
			s.checkOut(slot)
			owner.doubt()
		}
	}
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

// concerns says whether a flush must ask the node: some key is on it, or may be.
func (n *node) concerns() bool { return n.serves() || n.lodges() }

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
