package file

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore"
)

// The shares of a file system's space, in per cent, from which Inspect warns:
// the same as those of the other stores.
const (
	nearlyFull = 85
	almostFull = 95
)

// Usage is that of the file system, as df counts it: other files share it.
func (s *Store) Usage(ctx context.Context) (kvstore.Usage, error) {
	if err := s.usable(ctx); err != nil {
		return kvstore.Usage{}, err
	}
	st, err := statfs(s.dir)
	if err != nil {
		return kvstore.Usage{}, s.failed("ask the file system", "", classify(err, kvstore.ErrUnreachable))
	}
	unit := int64(st.Frsize)
	if unit == 0 {
		unit = int64(st.Bsize)
	}
	used := int64(st.Blocks-st.Bfree) * unit
	return kvstore.Usage{
		Capacity: used + int64(st.Bavail)*unit, // less what is reserved for root
		Used:     used,
		Blocks:   -1,
	}, nil
}

// Inspect looks at the directory and its file system.
func (s *Store) Inspect(ctx context.Context) ([]kvstore.Finding, error) {
	usage, err := s.Usage(ctx)
	if err != nil {
		return nil, err
	}
	st, err := statfs(s.dir)
	if err != nil {
		return nil, s.failed("ask the file system", "", classify(err, kvstore.ErrUnreachable))
	}
	var found []kvstore.Finding
	add := func(sev kvstore.Severity, what, fix string) {
		found = append(found, kvstore.Finding{Server: s.dir, Severity: sev, What: what, Fix: fix})
	}
	if inMemory(st) {
		add(kvstore.Warn, "the store is on a file system in memory: all data ends with a reboot", "move it to a disk")
	}
	if onNetwork(st) {
		add(kvstore.Warn, "the store is on a network file system: locks between machines and flushes are as good as its own",
			"use a local file system, or a store with servers")
	}
	if usage.Capacity > 0 {
		share := usage.Used * 100 / usage.Capacity
		free := (usage.Capacity - usage.Used) >> 20
		switch {
		case share >= almostFull:
			add(kvstore.Warn, fmt.Sprintf("the file system is almost full: %d %%, %d MiB free; writes will soon fail", share, free),
				"free space on it at once, or discard in the volumes (fstrim)")
		case share >= nearlyFull:
			add(kvstore.Warn, fmt.Sprintf("the file system is %d %% full, %d MiB free", share, free), "free space on it")
		}
	}
	if st.Bsize < kvstore.BlockSize {
		add(kvstore.Warn, fmt.Sprintf("the file system has blocks of %d bytes: a block may be torn when it is full", st.Bsize),
			"make the file system with blocks of 4096 bytes")
	}
	if info, err := os.Stat(s.dir); err == nil && info.Mode().Perm()&0o022 != 0 {
		add(kvstore.Warn, fmt.Sprintf("others may write to the directory (mode %o)", info.Mode().Perm()), "chmod 700 "+quote(s.dir))
	}
	switch err := probePunch(s.dir); err {
	case nil:
	case unix.EOPNOTSUPP, unix.ENOSYS:
		add(kvstore.Warn, "the file system cannot punch holes: discards write zeros and free nothing", "use ext4, XFS, Btrfs or tmpfs")
	default:
		add(kvstore.Info, fmt.Sprintf("could not find out whether the file system punches holes: %v", err), "")
	}
	return found, nil
}

// probePunch tries it on a file without a name, in the nearest directory that
// exists.
func probePunch(dir string) error {
	for {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			defer unix.Close(fd)
			if _, err := unix.Pwrite(fd, zeros[:kvstore.BlockSize], 0); err != nil {
				return err
			}
			return punch(fd, 0, kvstore.BlockSize)
		case err != unix.ENOENT || filepath.Dir(dir) == dir:
			return err
		}
		dir = filepath.Dir(dir)
	}
}

// Locate names the layer's file and shows a command that prints the block.
func (s *Store) Locate(k kvstore.Key) kvstore.Location {
	path := s.layerPath(k.Layer, ".blk")
	return kvstore.Location{
		Server:  s.dir,
		Key:     fmt.Sprintf("layers/%s.blk at byte %d", k.Layer, k.Number*kvstore.BlockSize),
		Command: fmt.Sprintf("dd if=%s bs=%d skip=%d count=1 status=none | xxd", quote(path), kvstore.BlockSize, k.Number),
	}
}
