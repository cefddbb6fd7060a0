package main

import (
	"github.com/kvbfs/kvbfs/cmd/internal/chain"
	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

// cacheFlags are the flags of a cache, for commands that may start a mount. Their
// defaults are mount's.
type cacheFlags struct {
	CacheSize string `help:"Memory for blocks that were read, as 512M, if this starts a mount. Default: none." placeholder:"SIZE"`
	ReadAhead string `help:"How far to read ahead of who reads in sequence, into the cache. Default: 4M." placeholder:"SIZE"`
}

// minCache is what reading ahead for a few streams takes.
const minCache = 1 << 20

// check finds what is wrong with the sizes.
func (c cacheFlags) check() error {
	for flag, text := range map[string]string{"--cache-size": c.CacheSize, "--read-ahead": c.ReadAhead} {
		if text == "" {
			continue
		}
		size, err := stack.ParseSize(text)
		if err != nil {
			return err
		}
		if flag == "--cache-size" && size != 0 && size < minCache {
			return usagef("--cache-size must be 0 or at least %s", stack.FormatSize(minCache))
		}
	}
	return nil
}

// flags are those that were given, for `kvbfs mount`.
func (c cacheFlags) flags() (flags []chain.MountFlag) {
	for _, f := range []struct {
		name, text string
		of         func(daemon.Caching) int64
	}{
		{"--cache-size=", c.CacheSize, func(m daemon.Caching) int64 { return m.Size }},
		{"--read-ahead=", c.ReadAhead, func(m daemon.Caching) int64 { return m.ReadAhead }},
	} {
		if f.text != "" {
			flags = append(flags, chain.MountFlag{Text: f.name + f.text, In: func(m daemon.Caching) bool { return f.of(m) == sizeOf(f.text) }})
		}
	}
	return flags
}

// sizeOf parses a size that was checked.
func sizeOf(text string) int64 {
	size, _ := stack.ParseSize(text)
	return size
}

// textsOf are flags as they are written.
func textsOf(flags []chain.MountFlag) (args []string) {
	for _, f := range flags {
		args = append(args, f.Text)
	}
	return args
}
