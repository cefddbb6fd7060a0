package stack

import (
	"errors"
	"time"

	"github.com/kvbfs/kvbfs/cache/writeback"
	"github.com/kvbfs/kvbfs/kvstore"
)

// WriteBack says whether and how far writes are acknowledged before they are stored.
type WriteBack struct {
	On bool
	// MaxDirty bounds what is acknowledged and not stored, in bytes, MaxAge for how
	// long without a flush; see writeback.Config.
	MaxDirty int64
	MaxAge   time.Duration
}

// deferWrites puts write-back on the store, where it can pay and a flush cannot meet a
// full store.
func (s *Stack) deferWrites(cfg Config, private bool) error {
	if !cfg.WriteBack.On {
		return nil
	}
	wb, err := (*writeback.Store)(nil), kvstore.ErrUnsupported
	if !private {
		wb, err = writeback.Wrap(s.Store, writeback.Config{MaxDirty: cfg.WriteBack.MaxDirty, MaxAge: cfg.WriteBack.MaxAge, Log: cfg.Log})
	}
	if errors.Is(err, kvstore.ErrUnsupported) {
		if cfg.Log != nil {
			cfg.Log("no write-back for %s: the kernel's page cache does it for local files, other stores may have no room for what was acknowledged", s.URL)
		}
		return nil
	}
	if err == nil {
		s.WriteBack, s.Store = wb, wb
	}
	return err
}

// volumeOpened tells the layers between the volumes and the store.
func (s *Stack) volumeOpened(layer kvstore.LayerID) {
	if s.WriteBack != nil {
		s.WriteBack.Opened(layer)
	}
	if s.Cache != nil {
		s.Cache.Opened(layer)
	}
}
