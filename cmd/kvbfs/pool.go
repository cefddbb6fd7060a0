package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
	"github.com/kvbfs/kvbfs/kvstore/pool"
)

type poolCmd struct {
	Info   poolInfoCmd   `cmd:"" help:"Describe a pool: servers, settings, use."`
	Forget poolForgetCmd `cmd:"" help:"Forget a pool whose data is lost, so that its store can be used anew."`
}

type poolInfoCmd struct {
	URL  string `arg:"" optional:"" help:"Store URL. Default: KVBFS_STORE, else a directory of this machine."`
	JSON bool   `name:"json" help:"Print a JSON object."`
}

// poolInfo is what pool info --json prints.
type poolInfo struct {
	Store      string               `json:"store"`
	UUID       string               `json:"uuid,omitempty"` // empty: nothing was created yet
	Durability string               `json:"durability"`
	Servers    []serverInfo         `json:"servers"`
	Capacity   int64                `json:"capacity_bytes"` // 0: not known
	Used       int64                `json:"used_bytes"`
	Findings   []daemon.FindingInfo `json:"findings"`
}

type serverInfo struct {
	Address string `json:"address"`
	RTT     int64  `json:"round_trip_ns"`
}

func (c *poolInfoCmd) Run(g *globals) error {
	if stack.Private(c.URL) {
		return usagef("a store in memory lives inside its mount: ask `kvbfs status`")
	}
	s, err := stack.Open(g.ctx, stack.Config{URL: c.URL, Dangerous: true, Log: logToStderr})
	if err != nil {
		return err
	}
	defer s.Close(context.WithoutCancel(g.ctx))
	out := poolInfo{Store: s.URL, Durability: s.Store.Properties().Durability.String(), Findings: daemon.Findings(s.Findings)}
	if s.Pool.Formatted() {
		id := s.Pool.UUID()
		out.UUID = hex.EncodeToString(id[:])
	}
	for i, addr := range s.Store.Servers() {
		out.Servers = append(out.Servers, serverInfo{addr, s.RTT[i].Nanoseconds()})
	}
	usage, err := s.Store.Usage(g.ctx)
	if err != nil {
		return err
	}
	out.Capacity, out.Used = usage.Capacity, usage.Used
	if c.JSON {
		return printJSON(out)
	}
	fmt.Fprintf(stdout, "store       %s\n", out.Store)
	if out.UUID == "" {
		fmt.Fprintln(stdout, "pool        none yet: the first volume makes it")
	} else {
		fmt.Fprintf(stdout, "pool        %s\n", out.UUID)
	}
	fmt.Fprintf(stdout, "durability  %s\n", out.Durability)
	for i, srv := range out.Servers {
		fmt.Fprintf(stdout, "server %-4d %s, round trip %v\n", i, srv.Address, s.RTT[i])
	}
	if out.Capacity > 0 {
		fmt.Fprintf(stdout, "used        %s of %s\n", stack.FormatSize(out.Used), stack.FormatSize(out.Capacity))
	}
	for _, f := range out.Findings {
		fmt.Fprintf(stdout, "%-11s %s: %s\n", f.Severity, f.Server, f.What)
		if f.Fix != "" {
			fmt.Fprintf(stdout, "            fix: %s\n", f.Fix)
		}
	}
	return nil
}

type poolForgetCmd struct {
	URL string `arg:"" help:"Store URL."`
}

func (c *poolForgetCmd) Help() string {
	return "kvbfs remembers which pool it found behind a URL, and refuses a server that was emptied or replaced. This is your consent that the data of that pool is lost."
}

func (c *poolForgetCmd) Run(g *globals) error {
	url, err := stack.Canonical(c.URL)
	if err != nil {
		return err
	}
	if mounts := daemon.FindStore(url); len(mounts) > 0 {
		return fmt.Errorf("%s is mounted on %s: `kvbfs umount` it first", url, mounts[0].Dir)
	}
	dir, err := stack.StateDir()
	if err != nil {
		return err
	}
	known, others, err := pool.Forget(dir, url)
	if err != nil {
		return err
	}
	if !known {
		what := "no other pool either"
		if len(others) > 0 {
			what = "what is remembered: " + strings.Join(others, ", ")
		}
		return fmt.Errorf("nothing was remembered of %s; %s", url, what)
	}
	fmt.Fprintf(stdout, "%s: forgotten\n", url)
	return nil
}
