package fusefs

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/fusefs/uring"
)

// testTransport is what newRig mounts with.
var testTransport = TransportDev

// TestOverIOURing runs the tests of real mounts again over io_uring.
func TestOverIOURing(t *testing.T) {
	needFUSE(t)
	if _, err := os.Stat(uring.EnableParameter); err != nil || os.Getuid() != 0 {
		t.Skip("FUSE over io_uring needs Linux 6.14 and root")
	}
	testTransport = TransportURing
	defer func() { testTransport = TransportDev }()
	t.Run("it is", func(t *testing.T) {
		if newRig(t, nil).rings == nil {
			t.Error("the mount fell back to /dev/fuse")
		}
	})
	for name, test := range map[string]func(*testing.T){
		"CreateByTruncate": TestCreateByTruncate, "ReadWrite": TestReadWrite, "Fallocate": TestFallocate,
		"Lseek": TestLseek, "Attributes": TestAttributes, "Names": TestNames, "Only": TestOnly,
		"ReadOnly": TestReadOnly, "Fsync": TestFsyncIsAFlush, "Remove": TestRemove, "StatsFile": TestStatsFile, "PanicInHandler": TestPanicInHandler,
		"UnmountBusy": TestUnmountBusy, "Resized": TestResized, "Remount": TestRemount,
		"ThreadsDoNotWait": TestThreadsDoNotWait, "ForcedUnmountFailsWhatIsStuck": TestForcedUnmountFailsWhatIsStuck, "AbortFromOutside": TestAbortFromOutside,
	} {
		t.Run(name, test)
	}
}

// TestRequestsAllocateNothing: in steady state a request allocates nothing, from
// the transport through the volume and back. What the process does besides (timers,
// the watchdog) is why a few are allowed for thousands.
func TestRequestsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	needFUSE(t)
	for _, transport := range []Transport{TransportDev, TransportURing} {
		t.Run(string(transport), func(t *testing.T) {
			if _, err := os.Stat(uring.EnableParameter); err != nil && transport == TransportURing {
				t.Skip("FUSE over io_uring needs Linux 6.14")
			}
			r := newRig(t, func(o *Options) { o.Transport = transport })
			if got := r.Transport(); got != transport {
				t.Fatalf("the mount fell back to %s", got)
			}
			allocateNothing(t, r)
		})
	}
}

func allocateNothing(t *testing.T, r *rig) {
	r.child("fill", testVolume) // every page of the map is there
	var before, after runtime.MemStats
	for _, measured := range []bool{false, true} {
		c := r.start("many", testVolume, "wait")
		r.ready(c)
		runtime.ReadMemStats(&before)
		if _, err := c.stdin.Write([]byte("g")); err != nil {
			t.Fatal(err)
		}
		// Not waitFor: each look allocates the text that it looks at, and on a slow machine
		// the requests take some seconds.
		for looks := 0; !strings.Contains(c.out.String(), "done"); looks++ {
			if looks == 1200 {
				t.Fatalf("%d requests are not done within a minute", manyRequests)
			}
			time.Sleep(50 * time.Millisecond)
		}
		runtime.ReadMemStats(&after)
		if out, err := c.finish(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		n := after.Mallocs - before.Mallocs
		t.Logf("%d allocations beside %d requests", n, manyRequests)
		if measured && n > manyRequests/4 {
			t.Errorf("%d allocations beside %d requests", n, manyRequests)
		}
	}
}

// TestThreadsDoNotWait: when as many batches are left behind as may be, what would
// wait does so elsewhere than on the threads that take requests: the mount answers.
func TestThreadsDoNotWait(t *testing.T) {
	r := newRig(t, nil)
	r.child("fill", testVolume)
	r.disp.stragglers.count.Add(maxStragglers) // its threads run: most must not be touched
	c := r.start("many", testVolume, "wait")
	r.ready(c)
	r.store.shut()
	if _, err := c.stdin.Write([]byte("g")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "requests in flight", func() bool { return r.Status().InFlight >= 4 })
	r.child("expect", "stat", testVolume, "")
	r.child("expect", "stat", "nothing", "ENOENT")
	r.store.open()
	if out, err := c.finish(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
