// Package fusefs serves the volumes of a pool as files: one directory, in it one
// sparse file per volume and the read-only file .stats.
//
// It uses go-fuse's RawFileSystem over /dev/fuse. Each request runs on a
// goroutine of go-fuse; it joins the queue of a worker, and whoever finds the
// worker idle leads: it takes all that queued, serves it as one batch and wakes
// the others (dispatch.go). So requests that come in while a batch is under way
// form the next batch, with no thread of our own in between.
package fusefs

import (
	"context"
	"errors"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/volume"
)

var (
	// ErrBusy: the mount is in use. The wrapped text names the users.
	ErrBusy = errors.New("mount is in use")
	// ErrNoFUSE: /dev/fuse is missing or may not be opened.
	ErrNoFUSE = errors.New("no /dev/fuse")
)

// Options of Mount.
type Options struct {
	Dir           string   // mount point, or /dev/fd/N of a connection mounted already
	Name          string   // what mount(8) shows as the source: the store URL, masked
	Only          []string // serve these volumes only; empty: all
	AllowOther    bool
	AllowRemove   bool // rm removes volumes
	ReadOnly      bool
	Workers       int           // parallel batches; 0: number of CPUs
	Timeout       time.Duration // per request while a server is silent; 0: for ever
	MaxBackground int           // 0: 128 per volume, at least 256
	Log           func(format string, args ...any)
	Debug         bool
	// Stats renders the .stats file; nil: the package's own counters as JSON.
	Stats func() []byte
}

// Server is a served mount.
type Server struct{ unwritten }

// Mount mounts and begins to serve; when it returns without error the kernel's
// INIT was answered.
func Mount(ctx context.Context, vols *volume.Set, opt Options) (*Server, error) { panic("unwritten") }

// Status is what the mount is doing now.
type Status struct {
	Dir      string   `json:"dir"`
	Requests uint64   `json:"requests"`
	InFlight int      `json:"in_flight"`
	OldestMS int64    `json:"oldest_request_ms"`
	Opened   []Opened `json:"opened"` // image files that are open
	Batches  uint64   `json:"batches"`
	Workers  int      `json:"workers"`
}

// Opened is an image file that somebody has open.
type Opened struct {
	Volume string `json:"volume"`
	Count  int    `json:"count"`
	Write  bool   `json:"write"`
	PIDs   []int  `json:"pids"` // that opened it; they may have gone since
}

// Status may be called at any time; it never waits for a request.
func (s *Server) Status() Status { panic("unwritten") }

// Resized tells the kernel that a volume's size changed.
func (s *Server) Resized(volume string) { panic("unwritten") }

// Unmount unmounts: ErrBusy if files are open or something is mounted on a
// device over them. force detaches lazily and fails what is in flight.
func (s *Server) Unmount(force bool) error { panic("unwritten") }

// Wait returns when the mount is gone, whoever unmounted it.
func (s *Server) Wait() { panic("unwritten") }

// Close flushes and closes volumes and workers after the mount is gone.
func (s *Server) Close(ctx context.Context) error { panic("unwritten") }

type unwritten struct{}
