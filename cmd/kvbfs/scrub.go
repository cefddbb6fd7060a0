package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

type scrubCmd struct {
	storeFlag
	Name    string `arg:"" help:"Volume."`
	Rate    string `default:"64M" help:"How much to read per second, as 64M; 0: no limit." placeholder:"SIZE"`
	Restart bool   `help:"Begin anew though an earlier scrub was interrupted."`
	JSON    bool   `name:"json" help:"Print a JSON object."`
}

func (c *scrubCmd) Help() string {
	return "It runs beside everything else, in the daemon if the volume is mounted. Interrupted, it goes on where it was the next time. " +
		"The exit status is 1 if a block cannot be read. What it finds is mended by writing the block anew, or given up by `kvbfs volume repair`. " +
		"Keys of absent blocks are asked for too, as a crash may have left some behind: each counts as a tenth of a block against the rate."
}

func (c *scrubCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	rate, err := parseRate(c.Rate)
	if err != nil {
		return err
	}
	return c.on(g, c.Name, true, func(v daemon.Volumes) error {
		show := newProgress("scrubbing " + c.Name)
		p := daemon.ScrubParams{Name: c.Name, Rate: rate, Restart: c.Restart}
		sum, err := v.Scrub(g.ctx, p, func(p daemon.Progress) {
			if p.Text != "" {
				show.end()
				fmt.Fprintf(os.Stderr, "%s: %s\n", c.Name, p.Text)
				return
			}
			show.update(p.Done, p.Total)
		})
		show.end()
		if err != nil && g.ctx.Err() != nil {
			return scrubInterrupted(c.Name)
		}
		if err != nil {
			return err
		}
		if c.JSON {
			err = printJSON(sum)
		} else {
			printScrub(sum)
		}
		if err == nil && !sum.Lossless() {
			err = errSaid
		}
		return err
	})
}

// parseRate reads bytes per second.
func parseRate(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	n, err := stack.ParseSize(s)
	if err != nil || n <= 0 {
		return 0, usagef("bad rate %q: write 64M for 64 MiB per second, 0 for no limit", s)
	}
	return n, nil
}

func printScrub(s volume.Scrub) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(stdout, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("volume", "%s, %d blocks", s.Volume, s.Blocks)
	line("checked", "%d blocks that exist, %d keys of blocks that do not", s.Checked, s.Asked)
	if s.Leaked+s.LeakedPages > 0 {
		line("leaked", "%d keys that nobody needed, %d of them freed, the others will be; %d pages of the map", s.Leaked, s.Freed, s.LeakedPages)
	}
	if s.Pages > 0 {
		line("map", "%d pages were lost or old, %d of them stored again", s.Pages, s.HealedPages)
	}
	printDamage(line, &s.Damage)
	if s.Lossless() {
		line("result", "every block can be read")
		return
	}
	line("result", "%d blocks cannot be read: write them anew, or `kvbfs volume repair %s` after unmounting", s.Damage.Blocks(), s.Volume)
}

// maxDamageLines bounds what people are shown; JSON has more.
const maxDamageLines = 20

// printDamage lists what cannot be read.
func printDamage(line func(name, format string, args ...any), d *volume.Damage) {
	for i, e := range d.Extents {
		if i == maxDamageLines {
			line("", "and %d more ranges; --json lists up to 1000", uint64(len(d.Extents)-i)+d.Omitted)
			break
		}
		blocks := fmt.Sprintf("block %d", e.First)
		if e.Count > 1 {
			blocks = fmt.Sprintf("blocks %d to %d", e.First, e.First+e.Count-1)
		}
		line(strings.ToUpper(e.Class), "%s on server %s", blocks, e.Server)
	}
}

// scrubInterrupted is an interruption for people; it holds the volume's name.
type scrubInterrupted string

func (s scrubInterrupted) Error() string {
	return "interrupted: the same command goes on where the scrub of " + string(s) + " was"
}

func (s scrubInterrupted) Is(target error) bool { return removalInterrupted(s).Is(target) }
