package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/kvbfs/kvbfs/kvstore"
)

// State of a volume or layer in the catalogue.
type State uint8

const (
	Creating State = iota + 1
	Ready
	Removing
)

// String returns "creating", "ready" or "removing".
func (s State) String() string {
	switch s {
	case Creating:
		return "creating"
	case Ready:
		return "ready"
	case Removing:
		return "removing"
	}
	return "unknown"
}

// Layer is one layer of a volume. Volumes have one until snapshots come.
type Layer struct {
	ID   kvstore.LayerID
	UUID [16]byte // seeds the CRC of its blocks
}

// Volume is a volume record.
type Volume struct {
	Name      string
	UUID      [16]byte
	State     State
	Size      int64 // bytes, a multiple of kvstore.BlockSize
	Layers    []Layer
	MapHeight uint8 // levels of the presence map; 0: the store keeps presence
	Created   time.Time
	Damaged   bool // data was lost; set before the first EIO is given
	// Unaccepted: a server with blocks of it was emptied and replaced, and nobody
	// accepted the loss for this volume yet. It must not be opened.
	Unaccepted bool
	Generation uint64 // rises with each new holder
	// Features that a reader must know: unknown compatible ones are ignored,
	// unknown read-only compatible ones allow reading only, unknown incompatible
	// ones refuse.
	Compat, ROCompat, Incompat uint64

	last lastHolder
	tail []byte // of a newer writer
}

// MaxSize is the largest volume: 8 EiB would overflow loff_t, and 64 TiB keep
// the local map (1 bit per block, two bitmaps) within 4 GiB of sparse tmpfs.
const MaxSize = 64 << 40

// errNoRecord: the catalogue has the volume but there is no record of it.
var errNoRecord = errors.New("volume has no record")

// readVolume returns the record of a catalogue entry, errNoRecord if there is
// none. Records go by uuid, so what a slow writer or a crash leaves of an earlier
// volume of the same name is never met.
func (p *Pool) readVolume(ctx context.Context, t *table, e entry) (*Volume, stored, error) {
	name := p.volumeName(e.uuid)
	s, err := p.load(ctx, t, name, kindVolume)
	if errors.Is(err, kvstore.ErrAbsent) {
		return nil, stored{}, errNoRecord
	}
	if err != nil {
		return nil, s, err
	}
	v, err := decodeVolume(s.head, s.body)
	if err == nil && (v.UUID != e.uuid || v.Name != e.name) {
		err = damaged("it is about volume %s", v.Name)
	}
	if err != nil {
		return nil, s, p.opError("read record", t.master, name, err)
	}
	if e.state == Removing {
		v.State = Removing // final, whatever a slow writer's copy says
	}
	return v, s, nil
}

// Volumes lists the catalogue, sorted by name, also what is Creating or
// Removing. A volume whose record was lost is listed as Damaged, with a layer
// that is nobody's (id 0); Volume says why.
func (p *Pool) Volumes(ctx context.Context) ([]Volume, error) {
	if err := p.Refresh(ctx); err != nil {
		return nil, err
	}
	t := p.table.Load()
	if t == nil {
		return nil, nil
	}
	c, _, err := p.readCatalogue(ctx, t)
	if err != nil {
		return nil, err
	}
	list := make([]Volume, 0, len(c.entries))
	for _, e := range c.entries {
		v, _, err := p.readVolume(ctx, t, e)
		switch {
		case err == nil:
			list = append(list, *v)
		case errors.Is(err, errNoRecord) && e.state == Creating:
			// Reserved a moment ago, or by a creator that crashed: nothing is there
			// yet and the next creator takes the name over.
		case errors.Is(err, errNoRecord) && e.state == Removing:
			if p.looking {
				continue
			}
			if err := p.dropEntry(ctx, t, e); err != nil { // what ForgetVolume does last
				return nil, err
			}
		case errors.Is(err, errNoRecord), errors.Is(err, kvstore.ErrCorrupt):
			list = append(list, Volume{Name: e.name, UUID: e.uuid, State: e.state, Damaged: true, Layers: []Layer{{}}})
		default:
			return nil, err
		}
	}
	return list, nil
}

// Volume reads one record: ErrNoVolume if there is none.
func (p *Pool) Volume(ctx context.Context, name string) (Volume, error) {
	v, _, _, err := p.lookup(ctx, name)
	if err != nil {
		return Volume{}, err
	}
	return *v, nil
}

// lookup finds a volume by name, with its entry and its record as stored.
func (p *Pool) lookup(ctx context.Context, name string) (*Volume, entry, stored, error) {
	none := fmt.Errorf("%w: %s", ErrNoVolume, name)
	if err := CheckName(name); err != nil {
		return nil, entry{}, stored{}, err
	}
	if err := p.Refresh(ctx); err != nil {
		return nil, entry{}, stored{}, err
	}
	t := p.table.Load()
	if t == nil {
		return nil, entry{}, stored{}, none
	}
	c, _, err := p.readCatalogue(ctx, t)
	if err != nil {
		return nil, entry{}, stored{}, err
	}
	e, ok := c.lookup(name)
	if !ok {
		return nil, entry{}, stored{}, none
	}
	v, s, err := p.readVolume(ctx, t, e)
	switch {
	case errors.Is(err, errNoRecord) && e.state == Ready:
		err = p.opError("read record", t.master, p.volumeName(e.uuid),
			damaged("it is lost though the catalogue lists the volume"))
	case errors.Is(err, errNoRecord):
		err = none
	}
	return v, e, s, err
}

// CreateVolume enters a volume as Creating, with a claimed layer id, and formats
// the pool first if need be. The caller makes the map and then calls Update to
// set it Ready. A leftover Creating volume of the same name is taken over: it
// gets a new uuid and a new layer, and if its creator lives after all, that
// creator's Update gives ErrVolumeExists.
func (p *Pool) CreateVolume(ctx context.Context, name string, size int64, mapHeight uint8) (Volume, error) {
	if err := CheckName(name); err != nil {
		return Volume{}, err
	}
	if err := CheckSize(size); err != nil {
		return Volume{}, err
	}
	if mapHeight > maxMapHeight {
		return Volume{}, fmt.Errorf("a map of %d levels: %w", mapHeight, kvstore.ErrInvalid)
	}
	t, err := p.formatted(ctx)
	if err != nil {
		return Volume{}, err
	}
	v := Volume{Name: name, UUID: newID(), State: Creating, Size: size, MapHeight: mapHeight, Created: p.opt.Now().UTC()}
	if err := p.reserve(ctx, t, entry{name, Creating, v.UUID}); err != nil {
		return Volume{}, err
	}
	p.mu.Lock()
	p.creating[name] = v.UUID
	p.mu.Unlock()
	layer, err := p.claimLayer(ctx)
	if err != nil {
		return Volume{}, err
	}
	v.Layers = []Layer{layer}
	if err := p.save(ctx, t, p.volumeName(v.UUID), stored{}, head{kind: kindVolume}, encodeVolume(&v)); err != nil {
		return Volume{}, err
	}
	return v, p.confirm(ctx, t, &v)
}

// reserve puts an entry into the catalogue, over a leftover of that name, whose
// record and layers it drops.
func (p *Pool) reserve(ctx context.Context, t *table, e entry) error {
	var left *Volume
	err := p.editCatalogue(ctx, t, func(c *catalogue) (bool, error) {
		left = nil
		old, ok := c.lookup(e.name)
		if ok && old.uuid == e.uuid {
			return false, nil // ours, stored by a try that did not learn it
		}
		if !ok {
			c.put(e)
			return true, nil
		}
		v, _, err := p.readVolume(ctx, t, old)
		state := old.state
		switch {
		case err == nil:
			left, state = v, v.State
		case errors.Is(err, errNoRecord) && state == Removing:
			state = Creating // the removal was complete but for the entry
		case !errors.Is(err, errNoRecord):
			return false, err
		}
		switch state {
		case Ready:
			return false, fmt.Errorf("%w: %s", ErrVolumeExists, e.name)
		case Removing:
			return false, fmt.Errorf("%w: %s is being removed", ErrVolumeExists, e.name)
		}
		c.put(e)
		return true, nil
	})
	if err != nil || left == nil {
		return err
	}
	return p.erase(ctx, t, left)
}

// erase drops layers, lease and record of a volume that no entry leads to or
// whose entry is dropped next. Of a creation that was taken over at most a few
// map pages are left, which scrub finds.
func (p *Pool) erase(ctx context.Context, t *table, v *Volume) error {
	for _, l := range v.Layers {
		if err := p.st.RemoveLayer(ctx, l.ID); err != nil && !errors.Is(err, kvstore.ErrAbsent) {
			return err
		}
	}
	if err := p.ctl.Delete(ctx, t.master, p.leaseName(v.UUID)); err != nil {
		return err
	}
	if err := p.remove(ctx, t, p.consentsName(v.UUID)); err != nil {
		return err
	}
	return p.remove(ctx, t, p.volumeName(v.UUID))
}

// confirm makes sure that a new record's entry was not taken over meanwhile.
func (p *Pool) confirm(ctx context.Context, t *table, v *Volume) error {
	c, _, err := p.readCatalogue(ctx, t)
	if err != nil {
		return err
	}
	if e, _ := c.lookup(v.Name); e.uuid == v.UUID {
		return nil
	}
	if err := p.erase(ctx, t, v); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s was created by somebody else at the same time", ErrVolumeExists, v.Name)
}

// claimLayer claims a random layer id. A crash after it leaves an id that nobody
// uses, which costs nothing: ids are never used again anyway. Id 0 stands for no
// layer and is not given.
func (p *Pool) claimLayer(ctx context.Context) (Layer, error) {
	for {
		id := newID()
		l := Layer{ID: kvstore.LayerID(binary.BigEndian.Uint32(id[:])), UUID: newID()}
		if l.ID == 0 {
			continue
		}
		if err := p.st.CreateLayer(ctx, l.ID); !errors.Is(err, kvstore.ErrExists) {
			return l, err
		}
	}
}

// Update changes a record by compare-and-swap, calling f again on a conflict.
// f must not change Name, UUID or the features. After an error other than f's
// the change may be stored or not.
func (p *Pool) Update(ctx context.Context, name string, f func(*Volume) error) (Volume, error) {
	for try := 0; ; try++ {
		old, e, s, err := p.lookup(ctx, name)
		if err != nil {
			return Volume{}, err
		}
		if err := p.stillOurs(old); err != nil {
			return Volume{}, err
		}
		v := *old
		v.Layers = append([]Layer(nil), old.Layers...)
		if err := f(&v); err != nil {
			return Volume{}, err
		}
		if err := checkChange(old, &v); err != nil {
			return Volume{}, err
		}
		t := p.table.Load()
		if err := p.write(ctx, t, s, &v); err != nil && !lostRace(err) {
			return Volume{}, err
		} else if err == nil {
			p.settled(&v)
			if v.State != e.state {
				err = p.setState(ctx, t, &v)
			}
			return v, err
		}
		if err := pause(ctx, try); err != nil {
			return Volume{}, err
		}
	}
}

// write saves a volume's record over the stored one, unless nothing changed.
func (p *Pool) write(ctx context.Context, t *table, old stored, v *Volume) error {
	name := p.volumeName(v.UUID)
	body := encodeVolume(v)
	if bytes.Equal(body, old.body) {
		// The last writer may have crashed before its copies were made.
		return p.copyOut(ctx, t.master, name, old.head, old.raw.Value)
	}
	if err := writable(old.head.roCompat); err != nil {
		return p.opError("write record", t.master, name, err)
	}
	return p.save(ctx, t, name, old, old.head, body)
}

// checkChange refuses records that nobody could read.
func checkChange(old, v *Volume) error {
	switch {
	case v.Name != old.Name || v.UUID != old.UUID ||
		v.Compat != old.Compat || v.ROCompat != old.ROCompat || v.Incompat != old.Incompat:
		return fmt.Errorf("update of %s: name, uuid and features cannot change: %w", old.Name, kvstore.ErrInvalid)
	case v.State < Creating || v.State > Removing || len(v.Layers) == 0 || len(v.Layers) > maxLayers || v.MapHeight > maxMapHeight:
		return fmt.Errorf("update of %s: state, layers or map height out of range: %w", old.Name, kvstore.ErrInvalid)
	case old.State == Removing && v.State != Removing:
		return fmt.Errorf("%w: %s is being removed", ErrNoVolume, old.Name)
	case v.Generation < old.Generation:
		return fmt.Errorf("update of %s: the generation went back: %w", old.Name, kvstore.ErrInvalid)
	}
	return CheckSize(v.Size)
}

// stillOurs refuses a creator's Update of a volume that somebody else took over.
func (p *Pool) stillOurs(v *Volume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id, ok := p.creating[v.Name]; ok && id != v.UUID {
		delete(p.creating, v.Name)
		return fmt.Errorf("%w: %s was created by somebody else at the same time", ErrVolumeExists, v.Name)
	}
	return nil
}

// settled forgets that a volume was begun here once it is no longer Creating.
func (p *Pool) settled(v *Volume) {
	if v.State == Creating {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.creating, v.Name)
}

// ForgetVolume takes a Removing volume, whose blocks are gone, out of the
// catalogue and drops its layers. After an error, call it again.
func (p *Pool) ForgetVolume(ctx context.Context, name string) error {
	t := p.table.Load()
	if t == nil {
		return fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	c, _, err := p.readCatalogue(ctx, t)
	if err != nil {
		return err
	}
	e, ok := c.lookup(name)
	if !ok {
		return fmt.Errorf("%w: %s", ErrNoVolume, name)
	}
	v, _, err := p.readVolume(ctx, t, e)
	switch {
	case errors.Is(err, errNoRecord) && e.state != Ready:
		return p.dropEntry(ctx, t, e)
	case err != nil:
		return err
	case v.State != Removing:
		return fmt.Errorf("volume %s is %s and not removing: %w", name, v.State, kvstore.ErrInvalid)
	}
	if err := p.erase(ctx, t, v); err != nil {
		return err
	}
	return p.dropEntry(ctx, t, e)
}
