package main

import (
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

// args are the flags for `kvbfs mount`.
func (c cacheFlags) args() (args []string) {
	if c.CacheSize != "" && c.CacheSize != "0" {
		args = append(args, "--cache-size="+c.CacheSize)
	}
	if c.ReadAhead != "" {
		args = append(args, "--read-ahead="+c.ReadAhead)
	}
	return args
}
