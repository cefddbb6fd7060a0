package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/fusefs"
)

type statusCmd struct {
	Dir  *string `arg:"" optional:"" help:"Mount to tell of. Default: all."`
	JSON bool    `name:"json" help:"Print a JSON array, one object per mount."`
}

func (c *statusCmd) Help() string {
	return "It asks the daemons and reads /proc and /sys; it never touches a mount, so it answers also when one hangs."
}

// mountStatus is one mount of status --json.
type mountStatus struct {
	*daemon.Status
	Users   []string `json:"users"`             // processes that have something of the mount open
	Problem string   `json:"problem,omitempty"` // why there is no more to tell
}

// statusTime bounds one daemon's answer.
const statusTime = 3 * time.Second

func askStatus(ctx context.Context, m daemon.Mount, out *daemon.Status) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	return daemon.Call(ctx, m, "status", nil, out)
}

func (c *statusCmd) Run(g *globals) error {
	if c.Dir != nil && *c.Dir == "" {
		return usagef("the directory of the mount is empty: name one, or leave it out for all")
	}
	mounts, err := daemon.Mounts()
	if err != nil {
		return err
	}
	if c.Dir != nil {
		m, ok := daemon.FindDir(*c.Dir)
		if !ok {
			return fmt.Errorf("%s is not mounted by kvbfs", *c.Dir)
		}
		mounts = []daemon.Mount{m}
	}
	all := make([]mountStatus, len(mounts))
	var wg sync.WaitGroup
	for i, m := range mounts {
		wg.Go(func() {
			s := &daemon.Status{}
			all[i] = mountStatus{Status: s, Users: append([]string{}, fusefs.Users(m.Dir)...)}
			if err := askStatus(g.ctx, m, s); err != nil {
				*s = daemon.Status{Mount: m}
				all[i].Problem = err.Error()
			}
		})
	}
	wg.Wait()
	if c.JSON {
		return printJSON(all)
	}
	if len(all) == 0 {
		fmt.Fprintln(os.Stderr, "nothing is mounted; `kvbfs mount DIR` does")
		return nil
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(stdout)
		}
		s.print()
	}
	return nil
}

func (s mountStatus) print() {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(stdout, "  %-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(stdout, s.Dir)
	line("store", "%s", s.Store)
	line("process", "%d, since %s", s.PID, s.Started.Local().Format("2006-01-02 15:04:05"))
	if s.Log != "" {
		line("log", "%s", s.Log)
	}
	if s.Problem != "" {
		line("NOT ANSWERING", "%s", s.Problem)
		line("", "`kvbfs umount --force %s` ends it; requests in flight fail then", s.Dir)
		return
	}
	line("durability", "%s", s.Durability)
	for _, u := range s.Unreachable {
		line("NO ANSWER", "%s: requests wait for it (%s)", u.Server, u.Error)
	}
	if s.Capacity > 0 {
		line("used", "%s of %s", stack.FormatSize(s.Used), stack.FormatSize(s.Capacity))
	}
	line("requests", "%d served, %d in flight, oldest %v", s.FS.Requests, s.FS.InFlight, time.Duration(s.FS.OldestMS)*time.Millisecond)
	for _, w := range s.FS.Waiting {
		line("WAITING", "%v: %s", time.Duration(w.AgeMS)*time.Millisecond, w)
	}
	if c := s.Cache; c != nil {
		line("cache", "%s of %s, %.1f %% of %d blocks hit", stack.FormatSize(c.Used), stack.FormatSize(c.Capacity), 100*c.HitRate, c.Hits+c.Misses)
		ahead := "off"
		if c.ReadAhead.Limit > 0 {
			ahead = fmt.Sprintf("up to %s, %d blocks (%d used, %d wasted)", stack.FormatSize(c.ReadAhead.Limit), c.ReadAhead.Read, c.ReadAhead.Used, c.ReadAhead.Wasted)
		}
		line("read-ahead", "%s", ahead)
	}
	if w := s.WriteBack; w != nil {
		line("write-back", "%s dirty for %.1f s of %s for %.1f s: a crash of kvbfs loses what was not flushed", stack.FormatSize(w.Dirty), w.Age,
			stack.FormatSize(w.MaxDirty), w.MaxAge)
	}
	for _, v := range s.Volumes {
		printVolume(line, v)
	}
	for _, d := range s.Devices {
		line("device", "%s on %s, %s, the kernel reads %s ahead", d.Path, strings.TrimPrefix(d.Backing, s.Dir+"/"), stack.FormatSize(d.Size), stack.FormatSize(int64(d.ReadAhead)<<10))
	}
	for _, u := range s.Users {
		line("used by", "%s", u)
	}
	for _, f := range s.Findings {
		if f.Severity != "info" {
			line(f.Severity, "%s: %s", f.Server, f.What)
		}
	}
	if s.Draining != "" {
		line("ending", "%s", s.Draining)
	}
}

func printVolume(line func(name, format string, args ...any), v daemon.OpenVolume) {
	if v.Error != "" {
		line("volume", "%s: %s", v.Name, v.Error)
		return
	}
	c := v.Counters
	line("volume", "%s, %s, %s stored: %d reads (%s), %d writes (%s), %d flushes, %d discards, %d errors", v.Name,
		stack.FormatSize(v.Size), stack.FormatSize(v.Allocated), c.Reads, stack.FormatSize(int64(c.ReadBytes)),
		c.Writes, stack.FormatSize(int64(c.WriteBytes)), c.Flushes, c.Discards, c.Errors)
	if v.Lease == "lost" {
		line("LEASE LOST", "%s: another machine had it meanwhile; requests fail until it was closed everywhere here", v.Name)
	}
	if v.FlushFails != "" {
		line("FLUSH FAILS", "%s: %s", v.Name, v.FlushFails)
	}
	if c.LostBlocks+c.CorruptBlocks+c.MisplacedBlocks+c.ForeignBlocks > 0 {
		line("DAMAGED", "%s: requests met blocks that are lost %d times, corrupt %d, misplaced %d, foreign %d; %d blocks healed; `kvbfs scrub %s` lists them",
			v.Name, c.LostBlocks, c.CorruptBlocks, c.MisplacedBlocks, c.ForeignBlocks, c.HealedBlocks, v.Name)
	}
}
