// Command kvbfs exposes volumes of a key-value store as files and as disks.
//
// One file per verb; the grammar is the struct below.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"
)

// cli is the grammar. Each verb is a type in its own file with a
// Run(*globals) error method.
type cli struct {
	Mount   mountCmd   `cmd:"" help:"Serve the volumes of a store as files in a directory."`
	Umount  umountCmd  `cmd:"" help:"Unmount, after everything is stored."`
	Volume  volumeCmd  `cmd:"" help:"Create, list, resize, remove and examine volumes."`
	Attach  attachCmd  `cmd:"" help:"Attach a volume to a loop device."`
	Detach  detachCmd  `cmd:"" help:"Detach a loop device and wait until it is gone."`
	Up      upCmd      `cmd:"" help:"Create, mount, attach, mkfs and mount a volume in one go."`
	Down    downCmd    `cmd:"" help:"Undo up, in order."`
	Demo    demoCmd    `cmd:"" help:"Show all of it in a scratch place, and clean up."`
	Status  statusCmd  `cmd:"" help:"Who is mounted where, and how it is doing."`
	Doctor  doctorCmd  `cmd:"" help:"Look for what is missing or dangerous, with the fix for each."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

// globals is what every verb gets.
type globals struct {
	ctx context.Context // ends at the first SIGINT or SIGTERM
}

// usageError is bad input: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// usagef returns an error that ends kvbfs with status 2.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	var c cli
	parser := kong.Must(&c, kong.Name("kvbfs"), kong.Description("Block devices on a key-value store."))
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kvbfs:", err)
		return 2
	}
	if err := k.Run(&globals{ctx: context.Background()}); err != nil {
		fmt.Fprintln(os.Stderr, "kvbfs:", err)
		var u usageError
		if errors.As(err, &u) {
			return 2
		}
		return 1
	}
	return 0
}
