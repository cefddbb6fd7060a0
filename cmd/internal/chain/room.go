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
// full store: Up gives its journal, and some metadata, a place beforehand.
//
// The room this takes is bounded by shares of the store, and the journal is made
// smaller than mkfs would if the store is small.
const (
	mib = 1 << 20

	// Of the store's capacity.
	ext4JournalShare = 32
	xfsLogShare      = 16
	metadataShare    = 64
	// A journal that is there already is left alone if it takes more than this.
	mostShare = 8

	ext4JournalMin, ext4JournalMax = 4 * mib, 128 * mib
	xfsLogMin, xfsLogDefault       = 16 * mib, 64 * mib
	metadataMax                    = 16 * mib
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
	switch {
	case capacity == 0:
	case name == "ext4" && !said("-J", "journal"):
		want := min(max(capacity/ext4JournalShare, ext4JournalMin), ext4JournalMax) / mib * mib
		if want < ext4DefaultJournal(size) {
			return []string{"-J", fmt.Sprintf("size=%d", want/mib)}
		}
	case name == "xfs" && !said("-l"):
		want := max(capacity/xfsLogShare, xfsLogMin) / mib * mib
		if want < xfsLogDefault {
			return []string{"-l", fmt.Sprintf("size=%dm", want/mib)}
		}
	}
	return nil
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

// makeRoom provisions the journal and metadata of a file system that is not
// mounted yet. What is there already costs nothing, so it is done each time. It
// never fails: without it only a full store is dangerous.
func (c *Chain) makeRoom(ctx context.Context, name, on, image string, capacity int64) {
	if capacity == 0 || ctx.Err() != nil {
		return
	}
	budget := min(capacity/metadataShare, metadataMax)
	l, err := layoutOf(name, budget, func(off int64, n int) ([]byte, error) { return c.sys.ReadAt(ctx, on, off, n) })
	if err == nil && l.journalSize() > capacity/mostShare {
		err = fmt.Errorf("it takes %s, and the store has %s only", formatSize(l.journalSize()), formatSize(capacity))
	}
	if err == nil {
		if len(l.journal) > 0 {
			c.Progress("reserving %s of the store for the journal", formatSize(l.journalSize()))
		}
		err = c.sys.Provision(ctx, image, l.journal...)
	}
	if err == nil {
		if err = c.sys.Provision(ctx, image, l.metadata...); errors.Is(err, syscall.ENOSPC) {
			err = nil // the journal has its room; this was a gift
		}
	}
	if err != nil && ctx.Err() == nil {
		c.Notice("the journal of %s has no reserved room: the file system may go read-only when the store is full (%v)", image, err)
	}
}
