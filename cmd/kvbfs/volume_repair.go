package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

type volumeRepairCmd struct {
	storeFlag
	Name       string `arg:"" help:"Volume; it must not be in use."`
	AcceptLoss bool   `help:"Accept that what cannot be read is lost: it reads as zeros afterwards."`
	JSON       bool   `name:"json" help:"Print a JSON object."`
}

func (c *volumeRepairCmd) Help() string {
	return "Without --accept-loss it reads every block and tells what is lost, and changes nothing; the exit status is 1 if something is. " +
		"With it, those blocks become holes, a server that was emptied or replaced is taken into the pool as a new one, and the volume can be used again; " +
		"each other volume of the pool waits for its own consent. A file system on the volume should be checked afterwards (fsck). " +
		"If a page of the presence map was lost, blocks of its range that had been discarded a short while before may come back."
}

// repairReport is what volume repair --json prints.
type repairReport struct {
	Volume string `json:"volume"`
	// Servers that were emptied or replaced.
	Servers  []string `json:"lost_servers"`
	Accepted bool     `json:"accepted"`
	Marked   bool     `json:"marked_damaged"` // by an earlier loss
	volume.Damage
}

func (c *volumeRepairCmd) Run(g *globals) error {
	if err := pool.CheckName(c.Name); err != nil {
		return err
	}
	url, err := stack.Canonical(c.Store)
	if err != nil {
		return err
	}
	if stack.Private(c.Store) || url == "mem:" {
		return usagef("a store in memory is lost with its mount: there is nothing to repair")
	}
	report, err := c.survey(g.ctx, url)
	if errors.Is(err, volume.ErrInUse) {
		err = inUse(err, c.Store, c.Name, "changed")
	}
	if err != nil {
		return err
	}
	if c.AcceptLoss && (report.Blocks() > 0 || report.Pages > 0 || report.Marked || len(report.Servers) > 0) {
		if !c.JSON {
			c.print(report) // before anything is changed
		}
		if report.Damage, err = c.accept(g.ctx); err != nil {
			return err
		}
		report.Accepted = true
	}
	switch {
	case c.JSON:
		err = printJSON(report)
	case report.Accepted:
		fmt.Fprintf(stdout, "%-10s %d blocks read as zeros now; check the file system before you use it\n", "accepted", report.Blocks()-report.Unknown)
	default:
		c.print(report)
	}
	if err == nil && !report.Accepted && (report.Blocks() > 0 || report.Pages > 0 || report.Marked || len(report.Servers) > 0) {
		err = errSaid
	}
	return err
}

// open opens the store without a daemon.
func (c *volumeRepairCmd) open(ctx context.Context, damaged bool) (*stack.Stack, error) {
	return stack.Open(ctx, stack.Config{URL: c.Store, Dangerous: true, Damaged: damaged, Log: logToStderr})
}

// survey tells what is lost and changes nothing.
func (c *volumeRepairCmd) survey(ctx context.Context, url string) (out repairReport, err error) {
	s, err := c.open(ctx, true)
	if err != nil {
		return out, err
	}
	defer s.Close(context.WithoutCancel(ctx))
	out = repairReport{Volume: c.Name, Servers: []string{}}
	for _, i := range s.Pool.Lost() {
		out.Servers = append(out.Servers, s.Store.Servers()[i])
	}
	if mounts := daemon.FindStore(url); len(out.Servers) > 0 && len(mounts) > 0 {
		return out, fmt.Errorf("%s is mounted on %s, which knows the server as it was: `kvbfs umount` it first", url, mounts[0].Dir)
	}
	rec, err := s.Pool.Volume(ctx, c.Name)
	if errors.Is(err, pool.ErrNoVolume) {
		return out, fmt.Errorf("%w; the pool has: %s", err, c.names(ctx, s))
	}
	if err != nil {
		return out, err
	}
	out.Marked = rec.Damaged
	show := newProgress("reading " + c.Name)
	out.Damage, err = s.Volumes.Survey(ctx, c.Name, show.update)
	show.end()
	return out, err
}

// names lists the volumes: while the pool is refused nothing else does.
func (c *volumeRepairCmd) names(ctx context.Context, s *stack.Stack) string {
	list, err := s.Pool.Volumes(ctx)
	if err != nil || len(list) == 0 {
		return "none"
	}
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	return strings.Join(names, ", ")
}

// accept does what the user consented to.
func (c *volumeRepairCmd) accept(ctx context.Context) (d volume.Damage, err error) {
	s, err := c.open(ctx, true)
	if err != nil {
		return d, err
	}
	err = s.Pool.AcceptLost(ctx)
	if closed := s.Close(context.WithoutCancel(ctx)); err == nil {
		err = closed
	}
	if err != nil {
		return d, err
	}
	if s, err = c.open(ctx, false); err != nil {
		return d, err
	}
	show := newProgress("repairing " + c.Name)
	d, err = s.Volumes.Repair(ctx, c.Name, show.update)
	show.end()
	if closed := s.Close(context.WithoutCancel(ctx)); err == nil {
		err = closed
	}
	return d, err
}

func (c *volumeRepairCmd) print(r repairReport) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(stdout, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("volume", "%s", r.Volume)
	for _, s := range r.Servers {
		line("SERVER", "%s was emptied or replaced: what it had is lost", s)
	}
	if r.Pages > 0 {
		line("MAP", "%d pages are lost; what is found in their ranges is kept", r.Pages)
	}
	printDamage(line, &r.Damage)
	for _, server := range slices.Sorted(maps.Keys(r.Damage.Servers)) {
		line("total", "%d blocks on server %s", r.Damage.Servers[server], server)
	}
	switch {
	case r.Blocks() == 0 && r.Pages == 0 && !r.Marked && len(r.Servers) == 0:
		line("result", "every block can be read: nothing to repair")
		return
	case r.Blocks() == 0:
		line("result", "every block can be read; the volume is marked as damaged by an earlier loss")
	default:
		line("result", "%d blocks are lost (%d lost, %d corrupt, %d misplaced, %d foreign), and %d that may never have been written",
			r.Blocks()-r.Unknown, r.Lost, r.Corrupt, r.Misplaced, r.Foreign, r.Unknown)
	}
	if !c.AcceptLoss {
		line("", "nothing was changed; `kvbfs volume repair %s --accept-loss` makes them read as zeros", c.Name)
	}
}

// consentText tells of a loss that was accepted.
func consentText(c daemon.ConsentInfo) string {
	return fmt.Sprintf("%d blocks lost, %d damaged, %d unknown, on %s from %s",
		c.Lost, c.Corrupt, c.Unknown, c.Time.Local().Format(time.RFC3339), c.Host)
}
