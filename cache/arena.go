//go:build !race

package cache

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// newArena returns n bytes outside the Go heap: the collector neither looks at
// them nor lets the process grow by as much again. They cost memory when they are
// first used.
func newArena(n int64) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("memory for a cache of %d bytes: %w", n, err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // fewer page faults; without it all works
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	return b, nil
}

func freeArena(b []byte) error { return unix.Munmap(b) }
