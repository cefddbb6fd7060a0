package main

import (
	"encoding/json"
	"fmt"

	"github.com/kvbfs/kvbfs/cmd/internal/chain"
)

type downCmd struct {
	Name string `arg:"" help:"Volume."`
	At   string `help:"Where it is mounted, as a check." placeholder:"DIR"`
	JSON bool   `name:"json" help:"Print what was taken down as a JSON object."`
}

func (c *downCmd) Help() string {
	return `Unmounts the file system, detaches the device, and unmounts the store if up mounted it and nothing else uses it. The volume and its data stay. While something is in use, its users are named and nothing is changed.`
}

func (c *downCmd) Run(g *globals) error {
	run, err := chain.New(steps(), notice)
	if err != nil {
		return err
	}
	res, err := run.Down(g.ctx, c.Name, c.At)
	if err != nil {
		return chainError(err)
	}
	tellLeft(res)
	switch {
	case c.JSON:
		return json.NewEncoder(stdout).Encode(res)
	case res.Already:
		fmt.Fprintf(stdout, "%s is not up\n", res.Name)
	default:
		fmt.Fprintf(stdout, "%s is down\n", res.Name)
	}
	return nil
}
