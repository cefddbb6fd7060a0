package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// readCatalogue returns the catalogue; an absent one is empty.
func (p *Pool) readCatalogue(ctx context.Context, t *table) (*catalogue, stored, error) {
	s, err := p.load(ctx, t, p.catalogueName(), kindCatalogue)
	if errors.Is(err, kvstore.ErrAbsent) {
		return &catalogue{}, stored{}, nil
	}
	if err != nil {
		return nil, s, err
	}
	c, err := decodeCatalogue(s.head, s.body)
	if err != nil {
		return nil, s, p.opError("read record", t.master, p.catalogueName(), err)
	}
	return c, s, nil
}

// editCatalogue changes the catalogue by compare-and-swap. edit is called again
// after a conflict; if it returns false nothing is written.
func (p *Pool) editCatalogue(ctx context.Context, t *table, edit func(*catalogue) (bool, error)) error {
	for try := 0; ; try++ {
		c, old, err := p.readCatalogue(ctx, t)
		if err != nil {
			return err
		}
		change, err := edit(c)
		if err != nil || !change {
			return err
		}
		if len(c.entries) > maxVolumes {
			return fmt.Errorf("a pool has at most %d volumes: %w", maxVolumes, kvstore.ErrFull)
		}
		if err := writable(old.head.roCompat); err != nil {
			return p.opError("write record", t.master, p.catalogueName(), err)
		}
		h := old.head
		h.kind = kindCatalogue
		if err = p.save(ctx, t, p.catalogueName(), old, h, c.encode()); !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// writable refuses to change what has features that only newer versions keep up.
func writable(roCompat uint64) error {
	if unknown := roCompat &^ knownROCompat; unknown != 0 {
		return fmt.Errorf("%w: it uses the features %#x, with which this kvbfs may only read it: upgrade kvbfs", ErrFormat, unknown)
	}
	return nil
}

// setState brings the catalogue's entry of a volume in step with its record. If
// the entry leads elsewhere meanwhile, the volume was taken over while it was
// being created, or removed: then the record is of no use and goes. The catalogue
// decides between a creator that says Ready and one that takes the name over,
// because both must change the same entry.
func (p *Pool) setState(ctx context.Context, t *table, v *Volume) error {
	gone := false
	err := p.editCatalogue(ctx, t, func(c *catalogue) (bool, error) {
		e, ok := c.lookup(v.Name)
		gone = !ok || e.uuid != v.UUID
		if gone || e.state == v.State || e.state == Removing {
			return false, nil
		}
		e.state = v.State
		c.put(e)
		return true, nil
	})
	if err != nil || !gone {
		return err
	}
	if err := p.erase(ctx, t, v); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s was removed, or created by somebody else at the same time", ErrNoVolume, v.Name)
}

// dropEntry takes one volume out of the catalogue, if it is still that one.
func (p *Pool) dropEntry(ctx context.Context, t *table, gone entry) error {
	return p.editCatalogue(ctx, t, func(c *catalogue) (bool, error) {
		if e, ok := c.lookup(gone.name); !ok || e.uuid != gone.uuid {
			return false, nil
		}
		c.drop(gone.name)
		return true, nil
	})
}
