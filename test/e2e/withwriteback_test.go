//go:build e2e

package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// underWriteBack are tests of faults, in their short forms, whose promises write-back
// must not change: those that take seconds. `make soak` runs the others with
// KVBFS_CACHE=writeback. Not among them are those of a crash of the daemon without a
// flush (TestCrash), as that is the one promise that changes, and those in which an
// overwrite waits for a silent server (TestIOTimeout), as it does not:
// TestWriteBackCrash and TestWriteBackOutage take their places.
var underWriteBack = []struct {
	name string
	test func(*testing.T)
}{
	{"model", func(t *testing.T) {
		r := rig.New(t, 2*time.Minute)
		modelShort(t, r, r.Memcached(256).Engine(), "v")
	}},
	{"discards", TestDiscardStorm},
	{"ghost", TestGhostWrite},
	{"emptied", TestEmptiedServer},
	{"spoiled", TestSpoiledBlocks},
	{"lost", TestLostKeys},
	{"silent", TestSilentServer},
	{"abort", TestAbortVolume},
	{"back in time", TestBackInTime},
}

// TestWithWriteBack runs tests of the fault matrix once more, with every mount
// deferring overwrites. `make e2e` does so over one transport, since write-back lies
// far below them.
func TestWithWriteBack(t *testing.T) {
	rig.RequireFUSE(t)
	if os.Getenv("KVBFS_TRANSPORT") == "dev" && os.Getenv("KVBFS_E2E_LONG") == "" {
		t.Skip("over one transport only")
	}
	t.Setenv("KVBFS_CACHE", "writeback")
	for _, c := range underWriteBack {
		t.Run(c.name, c.test)
	}
}
