package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

type lockCmd struct {
	Ls    lockLsCmd    `cmd:"" help:"Show who holds the write lease of each volume."`
	Break lockBreakCmd `cmd:"" help:"Take the write lease of a volume away from its holder."`
}

type lockLsCmd struct {
	storeFlag
	JSON bool `name:"json" help:"Print JSON."`
}

// lockInfo is one lease of lock ls --json.
type lockInfo struct {
	Volume     string    `json:"volume"`
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
			if h := i.Holder; h != nil {
				locks = append(locks, lockInfo{i.Name, h.ID, h.Host, h.PID, h.SameHost, h.Since, h.Generation, h.TTL})
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
		fmt.Fprintln(os.Stderr, "no volume is open for writing")
		return nil
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VOLUME\tHOST\tPROCESS\tSINCE\tRUNS OUT AFTER\tHOLDER")
	for _, l := range locks {
		host := l.Host
		if l.SameHost {
			host += " (this machine)"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%v\t%.8s\n", l.Volume, host, l.PID, l.Since.Local().Format("2006-01-02 15:04:05"),
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
	return "A holder that is gone needs no breaking: its lease runs out by itself, which this command waits for. A holder that renews its lease is alive: with --force it loses the lease all the same, and gives I/O errors from its next renewal on. What it has sent until then may still arrive, after the next holder has begun: that can mix up the data of the volume. First stop the holder, if you can reach it."
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
		if info.Holder == nil {
			fmt.Printf("%s: nobody holds it\n", c.Name)
			return nil
		}
		if info.Open && info.Holder.SameHost {
			return fmt.Errorf("%s is open on this machine (process %d): `kvbfs abort %s` gives it up, umount ends it in order", c.Name, info.Holder.PID, c.Name)
		}
		ttl := time.Duration(info.Holder.TTL) * time.Millisecond
		fmt.Fprintf(os.Stderr, "kvbfs: looking for up to %v whether %s (pid %d) still renews its lease of %s\n", ttl, info.Holder.Host, info.Holder.PID, c.Name)
		ctx, cancel := context.WithTimeout(g.ctx, ttl+lookSlack)
		defer cancel()
		err = v.Break(ctx, c.Name, c.Force)
		if errors.Is(err, pool.ErrHeld) {
			return fmt.Errorf("%w\n  its holder is alive: stop it there; --force takes the lease away all the same, and what the holder has sent may then arrive late and mix up the data", err)
		}
		if err == nil {
			fmt.Printf("%s: the lease of %s (pid %d) is taken away\n", c.Name, info.Holder.Host, info.Holder.PID)
		}
		return err
	})
}

// lookSlack is what a break may take beside the look at the holder.
const lookSlack = 15 * time.Second
