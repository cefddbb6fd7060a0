package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/kvbfs/kvbfs/cmd/internal/chain"
	"github.com/kvbfs/kvbfs/losetup"
)

type attachCmd struct {
	Name     string `arg:"" help:"Volume, or the path of an image."`
	Dir      string `help:"Mount that serves the volume." placeholder:"MOUNTDIR" type:"path" xor:"where"`
	Store    string `help:"Store whose mount serves the volume." placeholder:"URL" xor:"where"`
	ReadOnly bool   `help:"Attach read-only."`
	JSON     bool   `name:"json" help:"Print the device as a JSON object."`
}

func (c *attachCmd) Help() string {
	return `The device has blocks of 4096 bytes and direct I/O. Its name is printed on one line. A volume that is attached already is not attached again.`
}

func (c *attachCmd) Run(g *globals) error {
	file, err := chain.FindImage(g.ctx, c.Name, c.Dir, c.Store)
	if err != nil {
		return chainError(err)
	}
	d, existing, err := losetup.Attach(g.ctx, file, losetup.Options{
		ReadOnly: c.ReadOnly,
		Warn:     func(msg string) { fmt.Fprintln(os.Stderr, "kvbfs: warning:", msg) },
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(stdout).Encode(struct {
			losetup.Device
			Existing bool `json:"existing"`
		}{d, existing})
	}
	fmt.Fprintln(stdout, d.Path)
	return nil
}

// chainError gives what the user has to say otherwise the status of bad usage.
func chainError(err error) error {
	if errors.Is(err, chain.ErrUsage) {
		return usageError{err}
	}
	return err
}
