// Package daemon is the process that serves a mount, and how other processes
// find it and talk to it.
//
// Each daemon keeps a registry file and a unix socket in RuntimeDir/mounts. The
// socket speaks one JSON object per line: {"method": ..., "params": ...} ->
// {"result": ...} or {"error": ..., "kind": ...}. A process that is not the daemon
// may touch the mount; the daemon itself never does.
package daemon

import "context"

// Mount is a running daemon.
type Mount struct {
	Dir    string `json:"dir"`   // absolute mount point
	Store  string `json:"store"` // masked URL
	PID    int    `json:"pid"`
	Socket string `json:"socket"`
}

// Mounts lists the daemons of this runtime directory that are alive, and removes
// what dead ones left in the registry.
func Mounts() ([]Mount, error) { panic("unwritten") }

// FindDir returns the daemon that serves dir; FindStore those that serve a store.
func FindDir(dir string) (Mount, bool)   { panic("unwritten") }
func FindStore(maskedURL string) []Mount { panic("unwritten") }

// Call asks a daemon. Methods: status, list, info, create, resize, remove, where,
// set, umount. Errors keep their identity (errors.Is with the sentinels of pool
// and volume works across the socket).
func Call(ctx context.Context, m Mount, method string, params, result any) error { panic("unwritten") }
