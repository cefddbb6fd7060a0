package fusefs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/kvbfs/kvbfs/fusefs/devfuse"
	"github.com/kvbfs/kvbfs/fusefs/uring"
)

// Transport says how requests come from the kernel.
type Transport string

const (
	// TransportAuto is TransportURing where that is to be had, else TransportDev.
	TransportAuto Transport = "auto"
	// TransportDev reads and writes /dev/fuse: every kernel has it.
	TransportDev Transport = "dev"
	// TransportURing takes requests from per-CPU io_uring queues (Linux 6.14 and
	// newer, root or fuse.enable_uring=Y).
	TransportURing Transport = "uring"
)

// errNoRings: this kernel, or our rights, do not allow FUSE over io_uring.
var errNoRings = errors.New("FUSE over io_uring is not available")

// enabling holds other mounts of this process off while the parameter is Y.
var enabling sync.Mutex

// withRings calls f while new mounts are offered io_uring, and puts the
// parameter back: it concerns mounts of others too.
func withRings(f func() error) error {
	enabling.Lock()
	defer enabling.Unlock()
	old, err := os.ReadFile(uring.EnableParameter)
	if err != nil {
		return fmt.Errorf("%w: the kernel is older than 6.14 or built without it", errNoRings)
	}
	if strings.TrimSpace(string(old)) != "Y" {
		if err := os.WriteFile(uring.EnableParameter, []byte("Y"), 0); err != nil {
			return fmt.Errorf("%w: fuse.enable_uring is off, and only root may switch it on", errNoRings)
		}
		defer os.WriteFile(uring.EnableParameter, old, 0)
	}
	return f()
}

// startRings registers the rings: requests wait for that since INIT was answered.
// What stays on /dev/fuse (FORGET, INTERRUPT) has a reader besides.
func (s *Server) startRings() error {
	if s.cold.kernel.Flags64()&fuse.CAP_OVER_IO_URING == 0 {
		return fmt.Errorf("%w: the kernel did not offer it", errNoRings)
	}
	queues, err := uring.Queues()
	if err != nil {
		return err
	}
	rings, err := uring.Start(s.conn.dup, ringHandler{newInplace(s, queues)}, uring.Options{Payload: maxRequest})
	if err != nil {
		return err
	}
	if s.reader, err = devfuse.Start(s.conn.fd, s.cold, devfuse.Options{Payload: maxRequest, Threads: 1}); err == nil {
		s.rings = rings
	}
	return err
}

// startReader serves all requests from /dev/fuse.
func (s *Server) startReader() error {
	threads := devfuse.Threads(s.opt.Workers)
	var err error
	s.reader, err = devfuse.Start(s.conn.fd, readerHandler{newInplace(s, threads)}, devfuse.Options{Payload: maxRequest, Threads: threads})
	return err
}
