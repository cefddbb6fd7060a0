package memcached

import "github.com/kvbfs/kvbfs/kvstore"

// AnySilent implements kvstore.Store.
func (s *Store) AnySilent() bool { return s.silent.Load() != 0 }

// Rewinds implements kvstore.Store: a memcached that lost something lost all, which
// its sentinel shows.
func (s *Store) Rewinds() uint64 { return 0 }

// Haunted implements kvstore.Store: what changes wait for.
func (s *Store) Haunted(k kvstore.Key) bool {
	p := s.place.Load()
	if p == nil || !s.helpers.Holding() {
		return false
	}
	i := (*p).Server(k)
	return i >= 0 && i < len(s.servers) && s.servers[i].holds.Any()
}

// Silent implements kvstore.Store.
func (s *Store) Silent(k kvstore.Key) bool {
	p := s.place.Load()
	if p == nil || s.silent.Load() == 0 {
		return false
	}
	i := (*p).Server(k)
	return i >= 0 && i < len(s.servers) && s.servers[i].silence.Silent()
}
