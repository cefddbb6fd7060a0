package main

import (
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
)

// writeBackFlags are the flags of write-back, of mount and of up.
type writeBackFlags struct {
	Cache       string        `help:"When a write is acknowledged: writethrough, when the store has it, or writeback, for overwrites, at once: a crash of kvbfs then loses what was not flushed, as a disk's write cache does at a power failure." enum:"writethrough,writeback" default:"writethrough"`
	MaxDirty    string        `name:"max-dirty" help:"With --cache=writeback: how much may be acknowledged and not stored." default:"32M" placeholder:"SIZE"`
	MaxDirtyAge time.Duration `name:"max-dirty-age" help:"With --cache=writeback: for how long, without a flush." default:"1s" placeholder:"D"`
}

// check finds what is wrong with the flags.
func (f *writeBackFlags) check() error {
	size, err := stack.ParseSize(f.MaxDirty)
	switch {
	case err != nil:
		return usageError{err}
	case size < kvstore.BlockSize || size > maxDirty:
		return usagef("--max-dirty must be %s to %s", stack.FormatSize(kvstore.BlockSize), stack.FormatSize(maxDirty))
	case f.MaxDirtyAge <= 0:
		return usagef("--max-dirty-age must be more than 0")
	}
	return nil
}

// maxDirty bounds what one crash may lose, and how long a flush may take.
const maxDirty = 4 << 30

// args are the same flags for another kvbfs; none if write-back is off.
func (f *writeBackFlags) args() []string {
	if f.Cache != "writeback" {
		return nil
	}
	return []string{"--cache=writeback", "--max-dirty=" + f.MaxDirty, "--max-dirty-age=" + f.MaxDirtyAge.String()}
}

func (f *writeBackFlags) config() stack.WriteBack {
	size, _ := stack.ParseSize(f.MaxDirty) // checked
	return stack.WriteBack{On: f.Cache == "writeback", MaxDirty: size, MaxAge: f.MaxDirtyAge}
}
