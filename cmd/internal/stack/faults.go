//go:build kvbfs_faults

package stack

import (
	"os"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/fault"
)

// withFaults lets a build for tests misbehave as KVBFS_FAULTS says (fault.Parse), and
// write down what it is asked for.
func withFaults(st kvstore.Store) (kvstore.Store, error) {
	text := os.Getenv("KVBFS_FAULTS")
	if text == "" {
		return withTrace(st)
	}
	rules, err := fault.Parse(text)
	if err != nil {
		return nil, err
	}
	f := fault.Wrap(st, 1)
	f.SetRules(rules...)
	return withTrace(f)
}
