//go:build e2e

package e2e

import (
	"testing"

	"github.com/kvbfs/kvbfs/test/rig"
)

// underCache are tests of faults, in their short forms, whose promises a cache must
// not change: those that take seconds.
var underCache = []struct {
	name string
	test func(*testing.T)
}{
	{"model", TestModel},
	{"discards", TestDiscardStorm},
	{"ghost", TestGhostWrite},
	{"emptied", TestServerEmptied},
	{"spoiled", TestSpoiledBlocks},
	{"lost", TestLostKeys},
	{"silent", TestSilentServer},
	{"outage", TestOutage},
	{"back in time", TestBackInTime},
}

// TestWithCache runs tests of the fault matrix once more, with every mount caching and
// reading ahead. `make e2e` does so over both transports, as with every test.
func TestWithCache(t *testing.T) {
	rig.RequireFUSE(t)
	// Less than the volumes of most of them, so that blocks are evicted as well.
	t.Setenv("KVBFS_RIG_CACHE", "8M")
	for _, c := range underCache {
		t.Run(c.name, c.test)
	}
}
