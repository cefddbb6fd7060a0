package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kvbfs/kvbfs/kvstore"
)

// A stored record is changed on the master by compare-and-swap, then copied to
// every other server, and only then acknowledged. So:
//
//   - the master's copy, if it is intact, is the truth;
//   - a copy without an original means that the original was lost (records are
//     deleted on the master last), and the newest copy is then at most one
//     unacknowledged change behind: it is put back;
//   - a copy that is older than the original (a writer crashed between the two
//     steps) is brought up to date by the next writer.

// stored is a record as read from the master.
type stored struct {
	raw  kvstore.Record // Value nil: there is none
	head head
	body []byte
}

// get reads a record from one server. ErrAbsent, ErrCorrupt and ErrFormat are
// wrapped with the names of record and server.
func (p *Pool) get(ctx context.Context, server int, name string, kind recordKind) (stored, error) {
	rec, err := p.ctl.Get(ctx, server, name)
	if err != nil {
		return stored{}, err
	}
	h, body, err := unseal(name, kind, rec.Value)
	if err != nil {
		// raw stays, so that a corrupt record can be replaced.
		return stored{raw: rec}, p.opError("read record", server, name, err)
	}
	return stored{rec, h, body}, nil
}

// load reads a record from the master and, if it is lost or corrupt there, puts
// it back from the newest copy. ErrAbsent if no server has it; ErrCorrupt, with what is
// there in raw, if none has it intact.
func (p *Pool) load(ctx context.Context, t *table, name string, kind recordKind) (stored, error) {
	s, err := p.get(ctx, t.master, name, kind)
	if !errors.Is(err, kvstore.ErrAbsent) && !errors.Is(err, kvstore.ErrCorrupt) {
		return s, err
	}
	copy, ok, copyErr := p.newestCopy(ctx, t.master, name, kind)
	switch {
	case copyErr != nil:
		return stored{}, copyErr
	case !ok:
		return s, err // its raw, so that a corrupt record can be replaced
	case p.looking:
		return copy, nil
	}
	if repairErr := p.replace(ctx, t.master, name, s.raw, copy.raw.Value); repairErr != nil &&
		!errors.Is(repairErr, kvstore.ErrConflict) && !errors.Is(repairErr, kvstore.ErrExists) {
		return stored{}, fmt.Errorf("put back from another server's copy: %w", repairErr)
	}
	return p.get(ctx, t.master, name, kind)
}

// newestCopy looks for an intact copy on all servers but one. Every server must
// answer: the one that does not may have the newest copy.
func (p *Pool) newestCopy(ctx context.Context, master int, name string, kind recordKind) (newest stored, ok bool, err error) {
	for i := range p.servers {
		if i == master {
			continue
		}
		c, err := p.get(ctx, i, name, kind)
		if errors.Is(err, kvstore.ErrAbsent) || errors.Is(err, kvstore.ErrCorrupt) {
			continue
		}
		if err != nil {
			return stored{}, false, err
		}
		if !ok || c.head.revision > newest.head.revision {
			newest, ok = c, true
		}
	}
	return newest, ok, nil
}

// replace swaps old for value, or adds value if there is no old one. ErrConflict
// or ErrExists if somebody else was first.
func (p *Pool) replace(ctx context.Context, server int, name string, old kvstore.Record, value []byte) error {
	if old.Value == nil {
		return p.ctl.Add(ctx, server, name, value)
	}
	return p.ctl.Swap(ctx, server, name, old, value)
}

// lostRace says whether a replace failed because the record changed meanwhile,
// so that reading it again and trying again makes sense.
func lostRace(err error) bool {
	return errors.Is(err, kvstore.ErrConflict) || errors.Is(err, kvstore.ErrExists) || errors.Is(err, kvstore.ErrAbsent)
}

// save replaces a record on the master and copies it to every other server. h
// needs the features only. After lostRace nothing was changed; after another
// error the outcome is unknown, or the copies are behind: saving again is safe.
func (p *Pool) save(ctx context.Context, t *table, name string, old stored, h head, body []byte) error {
	h.nonce = newID()
	// The first term alone rises within the life of a record. The second one keeps
	// it rising when a catalogue was lost and begun again.
	h.revision = max(old.head.revision+1, uint64(p.opt.Now().UnixNano()))
	value := seal(name, h, body)
	if len(value) > kvstore.MaxRecord {
		return p.opError("write record", t.master, name, kvstore.ErrFull)
	}
	if err := p.replace(ctx, t.master, name, old.raw, value); err != nil {
		return err
	}
	return p.copyOut(ctx, t.master, name, h, value)
}

// copyOut brings every copy up to a record that the master has.
func (p *Pool) copyOut(ctx context.Context, master int, name string, h head, value []byte) error {
	for i := range p.servers {
		if i == master {
			continue
		}
		if err := p.copyTo(ctx, i, name, h, value); err != nil {
			return fmt.Errorf("copy to every server: %w", err)
		}
	}
	return nil
}

func (p *Pool) copyTo(ctx context.Context, server int, name string, h head, value []byte) error {
	for try := 0; ; try++ {
		c, err := p.get(ctx, server, name, h.kind)
		switch {
		case err == nil && (c.head.revision >= h.revision || bytes.Equal(c.raw.Value, value)):
			return nil // somebody else copied a newer one
		case err != nil && !errors.Is(err, kvstore.ErrAbsent) && !errors.Is(err, kvstore.ErrCorrupt):
			return err
		}
		if err = p.replace(ctx, server, name, c.raw, value); !lostRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// remove deletes a record everywhere, on the master last.
func (p *Pool) remove(ctx context.Context, t *table, name string) error {
	for i := range p.servers {
		if i == t.master {
			continue
		}
		if err := p.ctl.Delete(ctx, i, name); err != nil {
			return err
		}
	}
	return p.ctl.Delete(ctx, t.master, name)
}
