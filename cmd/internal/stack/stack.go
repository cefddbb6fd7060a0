// Package stack builds the whole stack below a mount or a command, in one
// function: URL -> store -> pool -> volumes.
package stack

import (
	"context"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// Config of Open.
type Config struct {
	URL         string // as the user gave it; empty: DefaultURL
	Connections int    // per worker and server; 0: 1
	// Dangerous allows stores whose Inspect refuses.
	Dangerous bool
	Log       func(format string, args ...any)
}

// Stack is an opened store with all that stands on it.
type Stack struct {
	URL      string // masked: no secrets
	Store    kvstore.Store
	Pool     *pool.Pool
	Volumes  *volume.Set
	Findings []kvstore.Finding
}

// Open builds a stack. An error says what is wrong with which part of the URL or
// which server, and what to do.
func Open(ctx context.Context, cfg Config) (*Stack, error) { panic("unwritten") }

// Close closes all in order.
func (s *Stack) Close(ctx context.Context) error { panic("unwritten") }

// DefaultURL returns the store to use when --store is not given and where that
// came from ("KVBFS_STORE" or "default"): KVBFS_STORE, else the embedded store
// file:///var/lib/kvbfs/store as root, $XDG_DATA_HOME-like state directory else.
func DefaultURL() (url, source string) { panic("unwritten") }

// RuntimeDir is /run/kvbfs as root, else $XDG_RUNTIME_DIR/kvbfs, else a 0700
// directory below the temporary one; KVBFS_RUNTIME_DIR overrides. Made if absent
// with mode 0700, refused if somebody else owns it.
func RuntimeDir() (string, error) { panic("unwritten") }

// StateDir is /var/lib/kvbfs/state as root, else $XDG_STATE_HOME/kvbfs
// (~/.local/state/kvbfs); KVBFS_STATE_DIR overrides. Made as RuntimeDir is.
func StateDir() (string, error) { panic("unwritten") }

// ParseSize reads 10G, 512M, 1.5T, 4096 (bytes); FormatSize writes the like.
func ParseSize(s string) (int64, error) { panic("unwritten") }
func FormatSize(n int64) string         { panic("unwritten") }
