//go:build kvbfs_faults

package stack

import (
	"os"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/trace"
)

// withTrace lets a build for tests write down to the file KVBFS_TRACE which blocks
// the store is asked for. The file is whole after umount.
func withTrace(st kvstore.Store) (kvstore.Store, error) {
	path := os.Getenv("KVBFS_TRACE")
	if path == "" {
		return st, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return trace.Wrap(st, trace.NewWriter(f), func(err error) error {
		if e := f.Close(); err == nil {
			err = e
		}
		return err
	}), nil
}
