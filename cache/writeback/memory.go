package writeback

import (
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// allocate makes n entries, whose blocks lie outside the Go heap and cost memory when
// they are first used.
func (s *Store) allocate(n int) error {
	memory, err := newMemory(n * kvstore.BlockSize)
	if err != nil {
		return fmt.Errorf("memory for %d dirty blocks: %w", n, err)
	}
	s.memory = memory
	entries := make([]entry, n)
	s.free = make([]*entry, n)
	for i := range entries {
		e := &entries[n-1-i] // so that those at the beginning are used first
		e.data = memory[(n-1-i)*kvstore.BlockSize : (n-i)*kvstore.BlockSize : (n-i)*kvstore.BlockSize]
		s.free[i] = e
	}
	return nil
}

// release gives the memory back. mu is held, and nobody uses an entry.
func (s *Store) release() error {
	if s.memory == nil {
		return nil
	}
	memory := s.memory
	s.memory, s.free = nil, nil
	return freeMemory(memory)
}

// take returns a free entry; nil: there is none.
func (s *Store) take() *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.free)
	if n == 0 {
		return nil
	}
	e := s.free[n-1]
	s.free = s.free[:n-1]
	s.dirty.Add(1)
	return e
}

// give gives an entry back.
func (s *Store) give(e *entry) {
	*e = entry{data: e.data}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, e)
	s.dirty.Add(-1)
}
