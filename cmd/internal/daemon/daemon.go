// Package daemon is the process that serves a mount, and how other processes
// find it and talk to it.
//
// Each daemon keeps a registry file and a unix socket in RuntimeDir/mounts. The
// socket speaks one JSON object per line: {"method": ..., "params": ...} ->
// {"result": ...} or {"error": ..., "kind": ...}, before which any number of
// {"progress": ...} lines may come. A process that is not the daemon may touch
// the mount; the daemon itself never does.
//
// # The nouns
//
//   - The registry: RuntimeDir/mounts/HASH.json per daemon, where HASH is of the
//     mount point. The daemon holds a flock on it for as long as it lives, which
//     tells a live one from a dead one with no pid to be mistaken (registry.go).
//   - [Volumes]: what a command does to volumes, either here, on a stack that
//     this process opened ([Local]), or by a daemon's socket ([Remote]).
//   - [Serve]: the life of a daemon: stack, mount, registry, socket, signals,
//     drain (serve.go). [Start] runs it in the background (start.go).
//
// # Lock order
//
// The registry's flock is taken before the mount is made and let go after the
// last volume is closed. No lock of this package is held across a call to
// another one.
package daemon

import (
	"path/filepath"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// Mount is a running daemon.
type Mount struct {
	Dir     string    `json:"dir"`   // absolute mount point
	Store   string    `json:"store"` // masked URL
	PID     int       `json:"pid"`
	Socket  string    `json:"socket"`
	Log     string    `json:"log,omitempty"` // of a daemon in the background
	Started time.Time `json:"started"`
	Ready   bool      `json:"ready"` // it serves; else it is still starting
	// Caching is what it was told of caches when it was started; nil: by a version
	// that does not say.
	Caching *Caching `json:"caching,omitempty"`
}

// Caching is what a mount was told of caches, whether the store can use them or not.
type Caching struct {
	Size      int64 `json:"cache_size_bytes"`
	ReadAhead int64 `json:"read_ahead_bytes"`
	// WriteBack: else MaxDirty and MaxAge mean nothing.
	WriteBack bool          `json:"write_back"`
	MaxDirty  int64         `json:"max_dirty_bytes"`
	MaxAge    time.Duration `json:"max_dirty_age_ns"`
}

// cachingOf says what a stack is to have of caches.
func cachingOf(c stack.Config) *Caching {
	return &Caching{c.CacheSize, c.ReadAhead, c.WriteBack.On, c.WriteBack.MaxDirty, c.WriteBack.MaxAge}
}

// Mounts lists the daemons of this runtime directory that are alive and serve,
// and removes what dead ones left in the registry.
func Mounts() ([]Mount, error) {
	all, err := registered()
	if err != nil {
		return nil, err
	}
	ready := all[:0]
	for _, m := range all {
		if m.Ready {
			ready = append(ready, m)
		}
	}
	return ready, nil
}

// FindDir returns the daemon that serves dir, which may be relative. It does not
// touch dir itself, only its parents.
func FindDir(dir string) (Mount, bool) {
	abs, err := Canonical(dir)
	if err != nil {
		return Mount{}, false
	}
	mounts, err := Mounts()
	if err != nil {
		return Mount{}, false
	}
	for _, m := range mounts {
		if m.Dir == abs {
			return m, true
		}
	}
	return Mount{}, false
}

// FindStore returns the daemons that serve a store, named by its canonical and
// masked URL (stack.Canonical).
func FindStore(maskedURL string) []Mount {
	mounts, err := Mounts()
	if err != nil {
		return nil
	}
	var out []Mount
	for _, m := range mounts {
		if m.Store == maskedURL {
			out = append(out, m)
		}
	}
	return out
}

// Canonical returns the one spelling of a mount point: absolute, with symbolic
// links resolved in its parents. dir itself is not looked at, because it may be
// a mount that hangs.
func Canonical(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return abs, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}
