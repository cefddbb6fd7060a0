//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// kinds are the engines that tests of leases run over.
var kinds = []string{"memcached", "redis", "sentinel", "cluster"}

// engine starts one of a kind, of mb megabytes (a cluster: each master).
func engine(t *testing.T, r *rig.Rig, kind string, mb int) rig.Engine {
	t.Helper()
	switch kind {
	case "redis":
		return rig.NewRedis(t, mb)
	case "sentinel":
		return rig.NewRedisSentinel(t, mb)
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

// onEngine is a test of the fault matrix, on a volume of its own.
type onEngine struct {
	name string
	run  func(t *testing.T, r *rig.Rig, e rig.Engine, v string)
}

// TestFaultsOverRedis is the fault matrix, in its short form, over a Redis and over
// a Redis Cluster: what the tests named here do to memcached. Over a master that
// Sentinels name, which is reached as a single one is, are those tests that stop or
// empty it, or look for it; TestSentinel replaces it.
func TestFaultsOverRedis(t *testing.T) {
	rig.RequireFUSE(t)
	sentinel := []onEngine{
		{"TestCrash", crashShort},
		{"TestStoppedServer", stoppedServer},
		{"TestIOTimeoutInTime", ioTimeoutInTime},
		{"TestSuccessor", successor},
		{"TestLostKeys", lostKeys},
		{"TestEmptiedServer", emptiedServer}, // the last one: it empties all
	}
	all := []onEngine{
		{"TestCrash", crashShort},
		{"TestModel", modelShort},
		{"TestStoppedDaemon", stoppedDaemon},
		{"TestStoppedServer", stoppedServer},
		{"TestOutage", outage},
		{"TestIOTimeoutInTime", ioTimeoutInTime},
		{"TestSuccessor", successor},
		{"TestGhostWrite", ghostWrite},
		{"TestDiscardStorm", discardStorm},
		{"TestRefusedAndMute", refusedAndMute},
		{"TestLostKeys", lostKeys},
		{"TestSpoiledBlocks", spoiledBlocks},
		{"TestFullImage", fullImage},
		{"TestEmptiedServer", emptiedServer},
	}
	alone := append([]onEngine{{"TestBadLine", badLineShort}}, all...)
	// Room for all volumes: the faster the machine, the more fio writes of each.
	sideBySide(t, map[string]func(t *testing.T){
		"redis":    func(t *testing.T) { faults(t, rig.NewRedis(t, 1024), alone) },
		"sentinel": func(t *testing.T) { faults(t, rig.NewRedisSentinel(t, 1024), sentinel) },
		"cluster":  func(t *testing.T) { faults(t, rig.NewRedisCluster(t, 1024), all) },
	})
}

func faults(t *testing.T, e *rig.Redis, tests []onEngine) {
	for _, f := range tests {
		t.Run(f.name, func(t *testing.T) {
			e.Await()
			t.Cleanup(e.Continue) // a test that failed may have left it stopped
			f.run(t, rig.New(t, 3*long(0, 2*time.Minute)+4*time.Minute), e, f.name)
		})
	}
}

// mostlyWaits lets a test that waits for leases to end run beside others that do.
// It must come before the test's rig, whose time would else be running.
func mostlyWaits(t *testing.T) {
	t.Helper()
	t.Parallel()
}

// sideBySide runs tests that wait most of the time, all at once: more of them than the
// machine has processors.
func sideBySide(t *testing.T, tests map[string]func(t *testing.T)) {
	var wg sync.WaitGroup
	for name, f := range tests {
		wg.Go(func() { t.Run(name, f) })
	}
	wg.Wait()
}

// waitsFor says whether a status tells that requests wait for a server of the engine.
func waitsFor(status string, e rig.Engine) bool {
	for _, addr := range e.Servers() {
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
