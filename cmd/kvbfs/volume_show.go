package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

type volumeLsCmd struct {
	storeFlag
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *volumeLsCmd) Run(g *globals) error {
	return c.on(g, "", true, func(v daemon.Volumes) error {
		list, err := v.List(g.ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			if list == nil {
				list = []daemon.VolumeInfo{}
			}
			return printJSON(list)
		}
		if len(list) == 0 {
			fmt.Fprintln(os.Stderr, "no volumes; `kvbfs volume create NAME --size 10G` makes one")
			return nil
		}
		w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tSIZE\tSTORED\tSTATE\tUSED BY")
		for _, i := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.Name, stack.FormatSize(i.Size), storedText(i), stateText(i), holderText(i))
		}
		return w.Flush()
	})
}

func storedText(i daemon.VolumeInfo) string {
	if i.Allocated < 0 {
		return "-"
	}
	return stack.FormatSize(i.Allocated)
}

func stateText(i daemon.VolumeInfo) string {
	if i.Unaccepted {
		return i.State + ", lost a server: see `kvbfs volume repair " + i.Name + "`"
	}
	if i.Damaged {
		return i.State + ", damaged"
	}
	return i.State
}

func holderText(i daemon.VolumeInfo) string {
	switch {
	case i.Holder == nil && len(i.Readers) > 0:
		who, _ := holdersOf(i.Readers)
		return "readers: " + who
	case i.Holder == nil && i.Open:
		return "readers"
	case i.Holder == nil:
		return "-"
	case i.Holder.SameHost:
		return fmt.Sprintf("process %d", i.Holder.PID)
	}
	return fmt.Sprintf("%s, process %d", i.Holder.Host, i.Holder.PID)
}

type volumeInfoCmd struct {
	storeFlag
	Name string `arg:"" help:"Volume."`
	JSON bool   `name:"json" help:"Print a JSON object."`
}

func (c *volumeInfoCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	return c.on(g, c.Name, true, func(v daemon.Volumes) error {
		i, err := v.Info(g.ctx, c.Name)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(i)
		}
		line := func(name, format string, args ...any) {
			fmt.Fprintf(stdout, "%-11s %s\n", name, fmt.Sprintf(format, args...))
		}
		line("name", "%s", i.Name)
		line("uuid", "%s", i.UUID)
		line("size", "%s (%d bytes)", stack.FormatSize(i.Size), i.Size)
		line("stored", "%s", storedText(i))
		line("state", "%s", stateText(i))
		line("used by", "%s", holderText(i))
		line("durability", "%s", i.Durability)
		line("created", "%s", i.Created.Local().Format(time.RFC3339))
		line("generation", "%d", i.Generation)
		for _, l := range i.Consents {
			line("accepted", "%s", consentText(l))
		}
		line("layers", "%s", strings.Join(i.Layers, ", "))
		return nil
	})
}

type volumeWhereCmd struct {
	storeFlag
	Name   string `arg:"" help:"Volume."`
	Offset string `arg:"" help:"Byte offset, also as 10G or 0x1000."`
	JSON   bool   `name:"json" help:"Print a JSON object."`
}

func (c *volumeWhereCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	off, err := parseOffset(c.Offset)
	if err != nil {
		return err
	}
	return c.on(g, c.Name, true, func(v daemon.Volumes) error {
		p, err := v.Where(g.ctx, c.Name, off)
		if errors.Is(err, volume.ErrOutside) {
			return fmt.Errorf("%s of %s: %w", c.Offset, c.Name, err)
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(p)
		}
		printPlace(p)
		return nil
	})
}

// parseOffset reads a size, or a hexadecimal number as kernel logs have them.
func parseOffset(s string) (int64, error) {
	if rest, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		n, err := strconv.ParseInt(rest, 16, 64)
		if err != nil || n < 0 || strings.HasPrefix(rest, "+") {
			return 0, usagef("bad offset %q", s)
		}
		return n, nil
	}
	n, err := stack.ParseSize(s)
	if err != nil {
		return 0, usagef("bad offset %q: write 4096, 10G or 0x1000", s)
	}
	return n, nil
}

func printPlace(p daemon.PlaceInfo) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(stdout, "%-8s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("block", "%d of layer %s", p.LBA, p.Layer)
	line("server", "%s (slot %d)", p.Server, p.Slot)
	line("key", "%s", p.Key)
	switch {
	case p.Present && p.Stored:
		line("state", "stored, and the map says so")
	case p.Present:
		line("state", "LOST: the map says it was written, the store does not have it")
	case p.Stored:
		line("state", "hole: the map says so; the store still has a leftover")
	default:
		line("state", "hole: never written, or discarded")
	}
	if p.CRC != "" {
		line("crc32c", "%s", p.CRC)
	}
	if p.Error != "" {
		line("error", "%s", p.Error)
	}
	if p.Command != "" {
		line("fetch", "%s", p.Command)
	}
}
