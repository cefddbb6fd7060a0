//go:build !kvbfs_faults

package stack

import "github.com/kvbfs/kvbfs/kvstore"

// withFaults is for builds with the tag kvbfs_faults, which tests make.
func withFaults(st kvstore.Store) (kvstore.Store, error) { return st, nil }
