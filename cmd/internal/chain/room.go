package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// A store that is full takes overwrites and refuses what is new. A journal that
// was never written is new, so a fresh file system would not survive the first
// full store: Up gives its journal a place beforehand. What goes through it gets
// its place from the store's reserve (kvstore/volume, provision.go).
//
// The room this takes is bounded by shares of the store, and the journal is made
// smaller than mkfs would if the store is small.
const (
	mib = 1 << 20

	// Of the store's capacity.
	ext4JournalShare = 32
	// A journal that takes more is left alone: one that is there already, or the log
	// of XFS, which mkfs.xfs never makes smaller than 64 MiB.
	mostShare = 6

	ext4JournalMin, ext4JournalMax = 4 * mib, 128 * mib
)

// journals says whether makeRoom knows a file system.
func journals(name string) bool { return name == "ext4" || name == "xfs" }

// capacity returns the capacity of the store below an image in bytes; 0: there is
// nothing to provision. It is known to be empty, or to begin with a superblock,
// so the first block is needed anyway.
func (c *Chain) capacity(ctx context.Context, image string) int64 {
	err := c.sys.Provision(ctx, image, span{0, 4096})
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return 0
	}
	n, err := c.sys.Capacity(ctx, image)
	if err != nil {
		return 0
	}
	return n
}

// journalOptions makes the journal of a new file system of size bytes fit the
// store, unless the user says something about it.
func journalOptions(name string, size, capacity int64, user []string) []string {
	said := func(words ...string) bool {
		return slices.ContainsFunc(user, func(arg string) bool {
			return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(arg, w) })
		})
	}
	if capacity == 0 || name != "ext4" || said("-J", "journal") {
		return nil
	}
	want := min(max(capacity/ext4JournalShare, ext4JournalMin), ext4JournalMax) / mib
	if want*mib >= ext4DefaultJournal(size) {
		return nil
	}
	return []string{"-J", fmt.Sprintf("size=%d", want)}
}

// ext4DefaultJournal is what mke2fs gives a file system of size bytes in blocks of
// 4096 (ext2fs_default_journal_size).
func ext4DefaultJournal(size int64) int64 {
	const gib = 1024 * mib
	for _, step := range []struct{ below, journal int64 }{
		{8 * mib, 0}, {128 * mib, 4 * mib}, {gib, 16 * mib}, {2 * gib, 32 * mib}, {16 * gib, 64 * mib},
		{32 * gib, 128 * mib}, {64 * gib, 256 * mib}, {128 * gib, 512 * mib},
	} {
		if size < step.below {
			return step.journal
		}
	}
	return 1024 * mib
}

// makeRoom provisions the journal of a file system that is not mounted yet. What
// is there already costs nothing, so it is done each time. It never fails: without
// it only a full store is dangerous.
func (c *Chain) makeRoom(ctx context.Context, name, on, image string, capacity int64) {
	if capacity == 0 || ctx.Err() != nil {
		return
	}
	journal, err := journalOf(name, func(off int64, n int) ([]byte, error) { return c.sys.ReadAt(ctx, on, off, n) })
	size := total(journal)
	switch {
	case err != nil:
	case size > capacity/mostShare:
		err = fmt.Errorf("it takes %s of a store of %s", formatSize(size), formatSize(capacity))
	case size > 0:
		c.Progress("reserving %s of the store for the journal", formatSize(size))
		err = c.sys.Provision(ctx, image, journal...)
	}
	if err != nil && ctx.Err() == nil {
		c.Notice("no room is reserved for the journal: the file system may shut down when the store is full (%v)", err)
	}
}
