package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

type volumeCmd struct {
	Create volumeCreateCmd `cmd:"" help:"Make an empty volume."`
	Ls     volumeLsCmd     `cmd:"" help:"List the volumes."`
	Info   volumeInfoCmd   `cmd:"" help:"Describe a volume."`
	Resize volumeResizeCmd `cmd:"" help:"Change a volume's size, mounted or not."`
	Rm     volumeRmCmd     `cmd:"" help:"Remove a volume and all of its data."`
	Set    volumeSetCmd    `cmd:"" help:"Change settings of a volume that is mounted."`
	Repair volumeRepairCmd `cmd:"" help:"Tell what of a volume is lost, and accept that."`
	Where  volumeWhereCmd  `cmd:"" help:"Find the block of a byte offset in the store."`
}

// storeFlag names the store that a verb is about.
type storeFlag struct {
	Store string `help:"Store URL. Default: KVBFS_STORE, else a directory of this machine." placeholder:"URL"`
}

// open returns the way to the store's volumes: the daemon that serves it, else a
// stack of our own. With a name it prefers the daemon that has that volume open.
// dangerous allows a store that may lose data.
func (f storeFlag) open(ctx context.Context, name string, dangerous bool) (daemon.Volumes, error) {
	url, err := stack.Canonical(f.Store)
	if err != nil {
		return nil, err
	}
	if mounts := daemon.FindStore(url); len(mounts) > 0 {
		m, err := choose(ctx, mounts, name)
		if err != nil {
			return nil, err
		}
		return daemon.Remote{Mount: m}, nil
	}
	if stack.Private(f.Store) || url == "mem:" {
		return nil, usagef("a store in memory lives inside its mount, and none is mounted: kvbfs mount DIR --store mem:")
	}
	s, err := stack.Open(ctx, stack.Config{URL: f.Store, Dangerous: dangerous, Log: logToStderr})
	if err != nil {
		return nil, err
	}
	return daemon.Local{Stack: s}, nil
}

// logToStderr tells what happens in a stack of our own.
func logToStderr(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "kvbfs: "+format+"\n", args...)
}

// choose returns the daemon that has the volume open, else the first one that
// answers.
func choose(ctx context.Context, mounts []daemon.Mount, name string) (best daemon.Mount, err error) {
	found := false
	for _, m := range mounts {
		var s daemon.Status
		if askErr := askStatus(ctx, m, &s); askErr != nil {
			if ctx.Err() != nil {
				return best, ctx.Err()
			}
			err = fmt.Errorf("%w; `kvbfs status` tells more", askErr)
			continue
		}
		if !found {
			best, found = m, true
		}
		for _, o := range s.FS.Opened {
			if o.Volume == name {
				return m, nil
			}
		}
	}
	if found {
		return best, nil
	}
	return best, err
}

// on opens the store, runs f and closes it again.
func (f storeFlag) on(g *globals, name string, dangerous bool, do func(v daemon.Volumes) error) error {
	v, err := f.open(g.ctx, name, dangerous)
	if err != nil {
		return err
	}
	err = do(v)
	// Closing stores what is left, also after an interrupt.
	if closeErr := v.Close(context.WithoutCancel(g.ctx)); err == nil {
		err = closeErr
	}
	return err
}

// printJSON writes a value for scripts.
func printJSON(v any) error {
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	return out.Encode(v)
}
