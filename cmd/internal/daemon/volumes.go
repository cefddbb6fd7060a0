package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// VolumeInfo describes a volume to commands and scripts.
type VolumeInfo struct {
	Name       string      `json:"name"`
	UUID       string      `json:"uuid"`
	State      string      `json:"state"` // creating, ready, removing
	Size       int64       `json:"size_bytes"`
	Allocated  int64       `json:"allocated_bytes"` // -1: not known
	Open       bool        `json:"open"`            // by the daemon that was asked
	Damaged    bool        `json:"damaged"`
	Created    time.Time   `json:"created"`
	Generation uint64      `json:"generation"`
	Durability string      `json:"durability"`
	Layers     []string    `json:"layers"`
	MapHeight  int         `json:"map_height"`
	Holder     *HolderInfo `json:"holder,omitempty"` // who may write
	// Readers share the lease while nobody may write.
	Readers []HolderInfo `json:"readers,omitempty"`
	// Unaccepted: a server was emptied, and `volume repair` was not run yet.
	Unaccepted bool          `json:"unaccepted"`
	Consents   []ConsentInfo `json:"accepted_losses,omitempty"` // of info only
}

// ConsentInfo is a loss that somebody accepted, in blocks.
type ConsentInfo struct {
	Time    time.Time `json:"time"`
	Lost    uint64    `json:"lost_blocks"`
	Corrupt uint64    `json:"damaged_blocks"`
	Unknown uint64    `json:"unknown_blocks"`
	Pages   uint64    `json:"lost_map_pages"`
	Host    string    `json:"host"`
}

// HolderInfo says who holds the lease of a volume, or a share of it.
type HolderInfo struct {
	ID         string    `json:"id"` // random, of this holding
	Host       string    `json:"host"`
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	SameHost   bool      `json:"same_host"`
	Generation uint64    `json:"generation"`
	TTL        int64     `json:"ttl_ms"`
}

// PlaceInfo says where the block of an offset is.
type PlaceInfo struct {
	Volume  string `json:"volume"`
	Offset  int64  `json:"offset_bytes"` // as asked
	LBA     uint64 `json:"lba"`
	Layer   string `json:"layer"`
	Slot    int    `json:"slot"`
	Server  string `json:"server"`
	Key     string `json:"key"` // as the store spells it
	Command string `json:"command"`
	Present bool   `json:"present"` // the map's bit
	Stored  bool   `json:"stored"`  // the store has it
	CRC     string `json:"crc32c,omitempty"`
	Error   string `json:"error,omitempty"` // why it cannot be read
}

// Volumes is what commands do to volumes, in whichever process they are open.
type Volumes interface {
	List(ctx context.Context) ([]VolumeInfo, error)
	Info(ctx context.Context, name string) (VolumeInfo, error)
	Create(ctx context.Context, name string, size int64) error
	Resize(ctx context.Context, name string, size int64, allowShrink bool) error
	// Remove tells progress, if not nil, how many blocks are gone of how many.
	Remove(ctx context.Context, name string, progress func(done, total int64)) error
	Where(ctx context.Context, name string, off int64) (PlaceInfo, error)
	// Scrub tells progress, if not nil, where it begins and how far it has come.
	Scrub(ctx context.Context, p ScrubParams, progress func(Progress)) (volume.Scrub, error)
	// Break takes the lease from its holder or holders (pool.Pool.Break).
	Break(ctx context.Context, name string, force bool) error
	Close(ctx context.Context) error
}

// Local does it on a stack that this process opened.
type Local struct{ *stack.Stack }

func (l Local) describe(i volume.Info) VolumeInfo {
	out := VolumeInfo{
		Name: i.Name, UUID: hex.EncodeToString(i.UUID[:]), State: stateName(i.State), Size: i.Size,
		Allocated: i.Allocated, Open: i.Open, Damaged: i.Damaged, Created: i.Created,
		Generation: i.Generation, Durability: l.Store.Properties().Durability.String(),
		Layers: []string{}, MapHeight: int(i.MapHeight),
	}
	out.Unaccepted = i.Unaccepted
	for _, c := range i.Consents {
		out.Consents = append(out.Consents, ConsentInfo(c))
	}
	for _, layer := range i.Layers {
		out.Layers = append(out.Layers, layer.ID.String())
	}
	if i.Holder != nil {
		h := holderInfo(*i.Holder)
		out.Holder = &h
	}
	for _, h := range i.Readers {
		out.Readers = append(out.Readers, holderInfo(h))
	}
	return out
}

func holderInfo(h pool.Holder) HolderInfo {
	return HolderInfo{ID: hex.EncodeToString(h.ID[:]), Host: h.Host, PID: h.PID, Since: h.Since,
		SameHost: h.SameHost, Generation: h.Generation, TTL: h.TTL.Milliseconds()}
}

func stateName(s pool.State) string {
	switch s {
	case pool.Creating:
		return "creating"
	case pool.Ready:
		return "ready"
	case pool.Removing:
		return "removing"
	}
	return "unknown"
}

// List implements Volumes.
func (l Local) List(ctx context.Context) ([]VolumeInfo, error) {
	if err := l.Pool.Refresh(ctx); err != nil && !errors.Is(err, pool.ErrNoPool) {
		return nil, err
	}
	list, err := l.Volumes.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]VolumeInfo, 0, len(list))
	for _, i := range list {
		out = append(out, l.describe(i))
	}
	return out, nil
}

// Info implements Volumes.
func (l Local) Info(ctx context.Context, name string) (VolumeInfo, error) {
	i, err := l.Volumes.Info(ctx, name)
	if err != nil {
		return VolumeInfo{}, err
	}
	return l.describe(i), nil
}

// Create implements Volumes.
func (l Local) Create(ctx context.Context, name string, size int64) error {
	return l.Volumes.Create(ctx, name, size)
}

// Resize implements Volumes.
func (l Local) Resize(ctx context.Context, name string, size int64, allowShrink bool) error {
	return l.Volumes.Resize(ctx, name, size, allowShrink)
}

// Remove implements Volumes.
func (l Local) Remove(ctx context.Context, name string, progress func(done, total int64)) error {
	return l.Volumes.Remove(ctx, name, progress)
}

// Where implements Volumes.
func (l Local) Where(ctx context.Context, name string, off int64) (PlaceInfo, error) {
	p, err := l.Volumes.Where(ctx, name, off)
	if err != nil {
		return PlaceInfo{}, err
	}
	out := PlaceInfo{
		Volume: name, Offset: off, LBA: p.Key.Number, Layer: p.Key.Layer.String(), Slot: p.Slot,
		Server: p.Location.Server, Key: p.Location.Key, Command: p.Location.Command,
		Present: p.Present, Stored: p.Stored,
	}
	if p.Stored {
		out.CRC = fmt.Sprintf("%08x", p.CRC)
	}
	if p.Err != nil {
		out.Error = p.Err.Error()
	}
	return out, nil
}

// Break implements Volumes.
func (l Local) Break(ctx context.Context, name string, force bool) error {
	return l.Pool.Break(ctx, name, force)
}

// Remote asks a daemon.
type Remote struct{ Mount Mount }

// List implements Volumes.
func (r Remote) List(ctx context.Context) (out []VolumeInfo, err error) {
	return out, Call(ctx, r.Mount, "list", nil, &out)
}

// Info implements Volumes.
func (r Remote) Info(ctx context.Context, name string) (out VolumeInfo, err error) {
	return out, Call(ctx, r.Mount, "info", Named{name}, &out)
}

// Create implements Volumes.
func (r Remote) Create(ctx context.Context, name string, size int64) error {
	return Call(ctx, r.Mount, "create", CreateParams{name, size}, nil)
}

// Resize implements Volumes.
func (r Remote) Resize(ctx context.Context, name string, size int64, allowShrink bool) error {
	return Call(ctx, r.Mount, "resize", ResizeParams{name, size, allowShrink}, nil)
}

// Remove implements Volumes.
func (r Remote) Remove(ctx context.Context, name string, progress func(done, total int64)) error {
	return CallProgress(ctx, r.Mount, "remove", Named{name}, nil, func(p Progress) {
		if progress != nil {
			progress(p.Done, p.Total)
		}
	})
}

// Where implements Volumes.
func (r Remote) Where(ctx context.Context, name string, off int64) (out PlaceInfo, err error) {
	return out, Call(ctx, r.Mount, "where", WhereParams{name, off}, &out)
}

// Break implements Volumes.
func (r Remote) Break(ctx context.Context, name string, force bool) error {
	return Call(ctx, r.Mount, "break", BreakParams{name, force}, nil)
}

// SetTimeout changes how long requests of a volume wait for a server that does
// not answer, now and for as long as the daemon lives; 0: for ever.
func (r Remote) SetTimeout(ctx context.Context, name string, d time.Duration) error {
	return Call(ctx, r.Mount, "set", SetParams{name, d.Milliseconds()}, nil)
}

// Abort fails all requests of a volume until it was closed (volume.Set.Abort).
func (r Remote) Abort(ctx context.Context, name string) error {
	return Call(ctx, r.Mount, "abort", Named{name}, nil)
}

// Close implements Volumes; the daemon goes on.
func (r Remote) Close(context.Context) error { return nil }
