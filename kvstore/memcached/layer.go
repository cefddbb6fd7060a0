package memcached

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// claimName is the control record by which a layer id is taken for ever.
func claimName(layer kvstore.LayerID) string { return fmt.Sprintf("kvbfs:layer:%s", layer) }

// CreateLayer implements kvstore.Store: an add of the claim on every server. What
// it claimed before an error stays claimed; ids are random, so none is missed.
// It also makes sure of the ballast, which must be there before the store fills.
func (s *Store) CreateLayer(ctx context.Context, layer kvstore.LayerID) error {
	for i := range s.servers {
		err := s.Control().Add(ctx, i, claimName(layer), []byte("claimed"))
		if err != nil {
			var op *kvstore.OpError
			if errors.As(err, &op) {
				op.Op = "create layer"
			}
			return err
		}
	}
	return s.EnsureBallast(ctx)
}
