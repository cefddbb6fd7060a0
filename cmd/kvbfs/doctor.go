package main

import (
	"fmt"

	"github.com/kvbfs/kvbfs/cmd/internal/doctor"
	"github.com/kvbfs/kvbfs/cmd/internal/stack"
)

type doctorCmd struct {
	URL  string `arg:"" optional:"" help:"Store to look at too. Default: KVBFS_STORE, else a directory of this machine."`
	JSON bool   `name:"json" help:"Print a JSON array of findings."`
	All  bool   `short:"a" help:"Show also what is in order."`
}

func (c *doctorCmd) Help() string {
	return "It changes nothing. The exit status is 0 if kvbfs can be used here, 1 if something that it needs is missing."
}

func (c *doctorCmd) Run(g *globals) error {
	// First the URL: a mistyped one needs no look at the machine.
	if _, err := stack.Canonical(c.URL); err != nil {
		return err
	}
	list := doctor.Machine(g.ctx)
	store, err := doctor.Store(g.ctx, c.URL, logToStderr)
	if err != nil {
		return err
	}
	list = append(list, store...)
	if c.JSON {
		if err := printJSON(list); err != nil {
			return err
		}
	} else {
		c.print(list)
	}
	if doctor.Failed(list) {
		return errSaid
	}
	return nil
}

func (c *doctorCmd) print(list []doctor.Finding) {
	hidden, failed := 0, 0
	for _, f := range list {
		if f.Level == doctor.OK && !c.All {
			hidden++
			continue
		}
		if f.Level == doctor.Fail {
			failed++
		}
		fmt.Fprintf(stdout, "%-5s %-10s %s\n", f.Level, f.Area, f.What)
		if f.Fix != "" {
			fmt.Fprintf(stdout, "%16s fix: %s\n", "", f.Fix)
		}
	}
	if hidden > 0 {
		fmt.Fprintf(stdout, "%d more checks are in order (--all shows them)\n", hidden)
	}
	if failed == 0 {
		fmt.Fprintln(stdout, "kvbfs can be used here")
	}
}
