//go:build !race

package writeback

import "golang.org/x/sys/unix"

func newMemory(n int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err == nil {
		_ = unix.Madvise(b, unix.MADV_DONTDUMP) // without it all works
	}
	return b, err
}

func freeMemory(b []byte) error { return unix.Munmap(b) }
