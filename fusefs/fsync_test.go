package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kvbfs/kvbfs/kvstore"
	"github.com/kvbfs/kvbfs/kvstore/mem"
)

// fsyncScenario writes the first block, says so, and wants fsync to end as args
// say.
func fsyncScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, testVolume), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 8192), 100); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("data"), 4096); err != nil {
		return err
	}
	if err := want("fsync", f.Sync(), nil); err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		return fmt.Errorf("nobody should write to stdin")
	}
	// The kernel tells of a failed fsync once; the volume must fail each of them.
	for range 2 {
		if err := want("fsync after the server was emptied", f.Sync(), syscall.EIO); err != nil {
			return err
		}
	}
	return nil
}

// TestFsyncIsAFlush: a server that lost everything is found by fsync, so fsync
// did ask.
func TestFsyncIsAFlush(t *testing.T) {
	r := newRig(t, nil)
	c := r.start("fsync")
	r.ready(c)
	r.store.Store.(*mem.Store).Forget(0)
	if out, err := c.finish(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := r.Unmount(false); err != nil {
		t.Fatal(err)
	}
	// All is closed, and each Close says that this was no clean end, the rig's too.
	r.lost = kvstore.ErrServerLost
	for range 2 {
		if err := r.Close(context.Background()); !errors.Is(err, r.lost) || !ClosedForGood(err) {
			t.Errorf("close: %v", err)
		}
	}
	if strings.Contains(r.logs.String(), "trying again") {
		t.Errorf("a close that cannot succeed was tried again:\n%s", r.logs)
	}
}
