package redis

import "github.com/kvbfs/kvbfs/kvstore"

// Haunted implements kvstore.Store: what changes wait for.
func (s *Store) Haunted(k kvstore.Key) bool {
	p := s.place.Load()
	if p == nil || !s.helpers.Holding() {
		return false
	}
	var raw [kvstore.KeySize]byte
	k.Put(raw[:])
	i := (*p).Server(k)
	if i < 0 || i >= len(s.servers) {
		return false
	}
	here := s.route(raw[:], i)
	for _, n := range *s.nodes.Load() {
		// Of a slot that is moving either node has keys. One that serves nothing any more is
		// perhaps gone for good, and would be asked for ever whether it is done.
		if n.holds.Any() && (n == here || s.cfg.Mode == Cluster && n.concerns()) {
			return true
		}
	}
	return false
}
