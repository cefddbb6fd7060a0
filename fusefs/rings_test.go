package fusefs

import (
	"os"
	"testing"

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
		"ForcedUnmountFailsWhatIsStuck": TestForcedUnmountFailsWhatIsStuck, "AbortFromOutside": TestAbortFromOutside,
	} {
		t.Run(name, test)
	}
}
