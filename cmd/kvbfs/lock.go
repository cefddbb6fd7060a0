package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

type lockCmd struct {
	Ls    lockLsCmd    `cmd:"" help:"Show who has each volume open, for writing or for reading."`
	Break lockBreakCmd `cmd:"" help:"Take the lease of a volume away from its holder."`
}

type lockLsCmd struct {
	storeFlag
	JSON bool `name:"json" help:"Print JSON."`
}

// lockInfo is one lease of lock ls --json.
type lockInfo struct {
	Volume     string    `json:"volume"`
	Mode       string    `json:"mode"`   // write, or read: shared by those that read
	Holder     string    `json:"holder"` // random id of this holding
	Host       string    `json:"host"`
	PID        int       `json:"pid"`
	SameHost   bool      `json:"same_host"`
	Since      time.Time `json:"since"`
	Generation uint64    `json:"generation"`
	TTL        int64     `json:"ttl_ms"`
}

func (c *lockLsCmd) Run(g *globals) error {
	locks := []lockInfo{}
	err := c.on(g, "", true, func(v daemon.Volumes) error {
		list, err := v.List(g.ctx)
		if err != nil {
			return err
		}
		for _, i := range list {
			add := func(mode string, h daemon.HolderInfo) {
				locks = append(locks, lockInfo{i.Name, mode, h.ID, h.Host, h.PID, h.SameHost, h.Since, h.Generation, h.TTL})
			}
			if i.Holder != nil {
				add("write", *i.Holder)
			}
			for _, h := range i.Readers {
				add("read", h)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(locks)
	}
	if len(locks) == 0 {
		fmt.Fprintln(os.Stderr, "no volume is open")
		return nil
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tFOR\tHOST\tPROCESS\tSINCE\tRUNS OUT AFTER\tHOLDER")
	for _, l := range locks {
		host := l.Host
		if l.SameHost {
			host += " (this machine)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%v\t%.8s\n", l.Volume, l.Mode, host, l.PID, l.Since.Local().Format("2006-01-02 15:04:05"),
			time.Duration(l.TTL)*time.Millisecond, l.Holder)
	}
	return w.Flush()
}

type lockBreakCmd struct {
	storeFlag
	Name  string `arg:"" help:"Volume."`
	Force bool   `help:"Do it although the holder is alive."`
}

func (c *lockBreakCmd) Help() string {
	return "A holder that is gone needs no breaking: its lease runs out by itself, which this command waits for. A holder that renews its lease is alive: with --force it loses the lease all the same, and gives I/O errors from its next renewal on. Readers share a lease; they lose it together, and lose no data. What a writer has sent until then may still arrive, after the next holder has begun: that can mix up the data of the volume. First stop the holder, if you can reach it."
}

func (c *lockBreakCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	return c.on(g, c.Name, true, func(v daemon.Volumes) error {
		info, err := v.Info(g.ctx, c.Name)
		if err != nil {
			return err
		}
		holders := info.Readers
		if info.Holder != nil {
			holders = []daemon.HolderInfo{*info.Holder}
		}
		if len(holders) == 0 {
			fmt.Fprintf(stdout, "%s: nobody holds it\n", c.Name)
			return nil
		}
		who, ttl := holdersOf(holders)
		if info.Open && holders[0].SameHost {
			return fmt.Errorf("%s is open on this machine (%s): `kvbfs abort %s` gives it up, umount ends it in order", c.Name, who, c.Name)
		}
		fmt.Fprintf(os.Stderr, "kvbfs: looking for up to %v whether %s still renews the lease of %s\n", ttl, who, c.Name)
		ctx, cancel := context.WithTimeout(g.ctx, ttl+lookSlack)
		defer cancel()
		err = v.Break(ctx, c.Name, c.Force)
		if errors.Is(err, pool.ErrHeld) {
			return fmt.Errorf("%w\n  its holder is alive: stop it there; --force takes the lease away all the same, and what the holder has sent may then arrive late and mix up the data", err)
		}
		if err == nil {
			fmt.Fprintf(stdout, "%s: the lease of %s is taken away\n", c.Name, who)
		}
		return err
	})
}

// holdersOf names holders, and says after how long all of them have run out.
func holdersOf(holders []daemon.HolderInfo) (who string, ttl time.Duration) {
	var names []string
	for _, h := range holders {
		names = append(names, fmt.Sprintf("%s (pid %d)", h.Host, h.PID))
		ttl = max(ttl, time.Duration(h.TTL)*time.Millisecond)
	}
	return strings.Join(names, ", "), ttl
}

// lookSlack is what a break may take beside the look at the holder.
const lookSlack = 15 * time.Second
