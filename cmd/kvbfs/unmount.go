package main

import "github.com/kvbfs/kvbfs/cmd/internal/chain"

// unmountCmd is started by up and down: an unmount may wait for a store for
// longer than they do.
type unmountCmd struct {
	Dir string `arg:""`
}

func (c *unmountCmd) Run(*globals) error {
	chain.Unmount(c.Dir)
	return nil
}
