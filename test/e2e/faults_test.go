//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// kinds are the engines that tests of faults run over.
var kinds = []string{"memcached", "redis", "cluster"}

// engine starts one of a kind, of mb megabytes (a cluster: each master).
func engine(t *testing.T, r *rig.Rig, kind string, mb int) rig.Engine {
	t.Helper()
	switch kind {
	case "redis":
		return rig.NewRedis(t, mb)
	case "cluster":
		return rig.NewRedisCluster(t, mb)
	}
	return r.MemcachedTCP(mb).Engine()
}

// stall is how long a fault lasts: as long as asked for over memcached, a second over
// the others, which have the same code above the store; make soak is long over all.
func stall(e rig.Engine, short, soak time.Duration) time.Duration {
	if e.Kind() != "memcached" {
		short = min(short, time.Second)
	}
	return long(short, soak)
}

// TestFaultsOverRedis is the fault matrix, in its short form, over a Redis and over
// a Redis Cluster: what the tests named here do to memcached.
func TestFaultsOverRedis(t *testing.T) {
	rig.RequireFUSE(t)
	for _, kind := range kinds[1:] {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // it waits most of the time
			var e *rig.Redis
			if kind == "redis" {
				e = rig.NewRedis(t, 256)
			} else {
				e = rig.NewRedisCluster(t, 256)
			}
			for _, f := range []struct {
				name string
				run  func(t *testing.T, r *rig.Rig, e rig.Engine, v string)
			}{
				{"TestCrash", crashShort},
				{"TestModel", modelShort},
				{"TestStoppedDaemon", stoppedDaemon},
				{"TestStoppedServer", stoppedServer},
				{"TestOutage", outage},
				{"TestIOTimeoutInTime", ioTimeoutInTime},
				{"TestSuccessor", successor},
				{"TestRefusedAndMute", refusedAndMute},
				{"TestLostKeys", lostKeys},
				{"TestSpoiledBlocks", spoiledBlocks},
				{"TestFullImage", fullImage},
				{"TestEmptiedServer", emptiedServer}, // the last one: it empties all
			} {
				t.Run(f.name, func(t *testing.T) {
					e.Await()
					t.Cleanup(e.Continue) // a test that failed may have left it stopped
					f.run(t, rig.New(t, 3*long(0, 2*time.Minute)+4*time.Minute), e, f.name)
				})
			}
		})
	}
}

// waitsFor says whether a status tells that requests wait for a server of the engine.
func waitsFor(status string, e rig.Engine) bool {
	_, servers, _ := strings.Cut(e.URL(), "//")
	for addr := range strings.SplitSeq(servers, ",") {
		for line := range strings.Lines(status) { // which may name several servers
			if strings.Contains(line, "waits for server ") && strings.Contains(line, addr) && strings.Contains(line, ", which does not answer") {
				return true
			}
		}
	}
	return false
}

// lostList is what a scrub lists of lost blocks: runs of neighbours on one server.
func lostList(gone []int64, at map[int64]string) string {
	var list []string
	for i := 0; i < len(gone); {
		n := 1
		for i+n < len(gone) && gone[i+n] == gone[i]+int64(n) && at[gone[i+n]] == at[gone[i]] {
			n++
		}
		list = append(list, fmt.Sprintf("%d+%d lost %s", gone[i], n, at[gone[i]]))
		i += n
	}
	return strings.Join(list, ", ")
}

// crashShort is TestCrash with fewer kills.
func crashShort(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	if r.Defers() {
		t.Skip("with write-back a crash of the daemon loses what was not flushed: TestWriteBackCrash")
	}
	kills := 2
	if os.Getenv("KVBFS_E2E_CYCLES") != "" {
		kills = cycles(t)
	}
	crash(t, r, e.URL(), v, false, kills)
}

// modelShort is TestModel with fewer steps.
func modelShort(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	modelRun(t, r, e.URL(), v, 2)
}
