package main

import (
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/chain"
	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore"
)

// writeBackFlags are the flags of write-back, of mount and of up.
type writeBackFlags struct {
	Cache       string         `help:"When a write is acknowledged: writethrough, the default, when the store has it, or writeback, for overwrites, at once: a crash of kvbfs then loses what was not flushed, as a disk's write cache does at a power failure." enum:"writethrough,writeback," default:"" placeholder:"MODE"`
	MaxDirty    string         `name:"max-dirty" help:"With --cache=writeback: how much may be acknowledged and not stored. Default: 32M." placeholder:"SIZE"`
	MaxDirtyAge *time.Duration `name:"max-dirty-age" help:"With --cache=writeback: for how long, without a flush. Default: 1s." placeholder:"D"`
}

// What holds if the flags are not given.
const (
	defaultMaxDirty    = 32 << 20
	defaultMaxDirtyAge = time.Second
)

// check finds what is wrong with the flags.
func (f *writeBackFlags) check() error {
	if f.MaxDirty != "" {
		size, err := stack.ParseSize(f.MaxDirty)
		if err != nil {
			return usageError{err}
		}
		if size < kvstore.BlockSize || size > maxDirty {
			return usagef("--max-dirty must be %s to %s", stack.FormatSize(kvstore.BlockSize), stack.FormatSize(maxDirty))
		}
	}
	if f.MaxDirtyAge != nil && *f.MaxDirtyAge <= 0 {
		return usagef("--max-dirty-age must be more than 0")
	}
	if (f.MaxDirty != "" || f.MaxDirtyAge != nil) && f.Cache != "writeback" {
		return usagef("--max-dirty and --max-dirty-age need --cache=writeback: else nothing is dirty")
	}
	return nil
}

// maxDirty bounds what one crash may lose, and how long a flush may take.
const maxDirty = 4 << 30

// flags are those that were given, for another kvbfs.
func (f *writeBackFlags) flags() (flags []chain.MountFlag) {
	want := f.config()
	if f.Cache != "" {
		flags = append(flags, chain.MountFlag{Text: "--cache=" + f.Cache, In: func(m daemon.Caching) bool { return m.WriteBack == want.On }})
	}
	if f.MaxDirty != "" {
		flags = append(flags, chain.MountFlag{Text: "--max-dirty=" + f.MaxDirty, In: func(m daemon.Caching) bool { return m.WriteBack && m.MaxDirty == want.MaxDirty }})
	}
	if f.MaxDirtyAge != nil {
		flags = append(flags, chain.MountFlag{Text: "--max-dirty-age=" + f.MaxDirtyAge.String(), In: func(m daemon.Caching) bool { return m.WriteBack && m.MaxAge == want.MaxAge }})
	}
	return flags
}

// config is what the flags mean. They were checked.
func (f *writeBackFlags) config() stack.WriteBack {
	c := stack.WriteBack{On: f.Cache == "writeback", MaxDirty: defaultMaxDirty, MaxAge: defaultMaxDirtyAge}
	if f.MaxDirty != "" {
		c.MaxDirty = sizeOf(f.MaxDirty)
	}
	if f.MaxDirtyAge != nil {
		c.MaxAge = *f.MaxDirtyAge
	}
	return c
}
