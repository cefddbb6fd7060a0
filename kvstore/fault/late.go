package fault

import (
	"bytes"
	"context"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// lateWrite is a write that was acknowledged and is still to be done.
type lateWrite struct {
	op  kvstore.Op
	due time.Time
}

// maxLate bounds what is acknowledged and not done: beyond it the caller waits.
const maxLate = 1 << 16

// later enters a write that was acknowledged.
func (s *Store) later(op *kvstore.Op) {
	s.mu.Lock()
	if s.late == nil {
		s.late = make(chan lateWrite, maxLate)
		go s.doLate(s.late)
	}
	late := s.late
	s.mu.Unlock()
	w := lateWrite{*op, time.Now().Add(lateBy)}
	w.op.Data = bytes.Clone(op.Data)
	late <- w
}

// doLate does late writes, one after the other, until the process ends: it is for
// processes that are killed.
func (s *Store) doLate(late <-chan lateWrite) {
	ch, err := s.inner.Channel(context.Background())
	for w := range late {
		time.Sleep(time.Until(w.due))
		if err == nil {
			ch.Do(context.Background(), []*kvstore.Op{&w.op})
		}
	}
}
