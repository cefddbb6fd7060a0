//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestStorm verifies what fio writes to a loop device while connections are reset and
// cut in the middle of answers, answers are delayed, and the server is stopped again
// and again. KVBFS_STORM_MB is how much is written and read back, in all.
func TestStorm(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fio")
	mb := 384
	if s := os.Getenv("KVBFS_STORM_MB"); s != "" {
		var err error
		if mb, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KVBFS_STORM_MB: %v", err)
		}
	}
	const round = 192 // of verify-device.fio, in MB
	r := rig.New(t, time.Duration(2+mb/round)*3*time.Minute)
	srv := r.MemcachedTCP(512)
	seed := rig.Seed(t)
	wire := rig.NewChaos(t, srv.Addr, rig.Line{ResetIn: 8 << 20, Delay: 200 * time.Microsecond}, seed)
	wire.Calm() // a mount or an open that cannot ask its server fails, and says so
	r.Create(srv.URL(), "v", "256M")
	m := r.Mount(wire.URL())
	dev := m.Attach("v")
	wire.Rage()
	stop := make(chan struct{})
	stopped := make(chan int)
	go func() {
		rng := rand.New(rand.NewPCG(seed, 5))
		n := 0
		for {
			select {
			case <-stop:
				stopped <- n
				return
			case <-time.After(time.Duration(500+rng.IntN(3000)) * time.Millisecond):
			}
			srv.Freeze()
			time.Sleep(time.Duration(rng.IntN(800)) * time.Millisecond)
			srv.Continue()
			n++
		}
	}()
	verified := 0
	for i := 0; verified < mb && !t.Failed(); i++ {
		res := r.Do(rig.Cmd{Args: []string{"fio", "--minimal", fmt.Sprintf("--randseed=%d", (seed>>1)+uint64(i)),
			filepath.Join(rig.ModuleRoot(t), "test", "fio", "verify-device.fio")},
			Dir: r.Dir, Env: []string{"TARGET=" + dev}, Limit: 5 * time.Minute})
		if res.Code != 0 {
			t.Errorf("fio: status %d, %v after %v\n%s", res.Code, res.Err, res.Took, res.All())
		}
		verified += round
	}
	close(stop)
	stops := <-stopped
	t.Logf("%d MB written and verified; %d connections cut, %d stops of the server", verified, wire.Faults(), stops)
	if wire.Faults() == 0 || stops == 0 {
		t.Error("no faults: no storm")
	}
	wire.Calm()
	r.Detach(dev)
	m.Umount()
}
