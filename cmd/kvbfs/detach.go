package main

import (
	"encoding/json"

	"github.com/kvbfs/kvbfs/cmd/internal/chain"
	"github.com/kvbfs/kvbfs/losetup"
)

type detachCmd struct {
	Name  string `arg:"" name:"dev|name" help:"Device, volume, or the path of an image."`
	Dir   string `help:"Mount that serves the volume." placeholder:"MOUNTDIR" type:"path" xor:"where"`
	Store string `help:"Store whose mount serves the volume." placeholder:"URL" xor:"where"`
	JSON  bool   `name:"json" help:"Print what was detached as a JSON object."`
}

func (c *detachCmd) Help() string {
	return `Returns when the device is really free. A device in use is left alone, and its users are named.`
}

func (c *detachCmd) Run(g *globals) error {
	device, err := chain.FindDevice(g.ctx, c.Name, c.Dir, c.Store)
	if err != nil {
		return chainError(err)
	}
	if err := losetup.Detach(g.ctx, device); err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(stdout).Encode(struct {
			Device string `json:"device"`
		}{device.Path})
	}
	return nil
}
