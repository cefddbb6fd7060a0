package chain

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestMkfsBesideADeadMount: mkfs.btrfs gives up at a dead mount of somebody else. It is tried
// again, and at last it is said what to do; nothing is left behind then. Other failures are
// told at once.
func TestMkfsBesideADeadMount(t *testing.T) {
	looks := errors.New("mkfs.btrfs: ERROR: cannot check mount status of /dev/loop3: Transport endpoint is not connected")
	f := newFake()
	c, req := start(t, f)
	req.FS, f.toolErrs = "btrfs", []error{looks, looks}
	if res, err := c.Up(t.Context(), req); err != nil || !res.MadeFS {
		t.Errorf("a mount that was put right meanwhile: %v", err)
	}
	for _, want := range []struct {
		errs []error
		text string
	}{
		{slices.Repeat([]error{looks}, mkfsTries), "kvbfs umount DIR"},
		{[]error{errors.New("mkfs.btrfs: no room")}, "no room"},
	} {
		f := newFake()
		c, req := start(t, f)
		req.FS, f.toolErrs = "btrfs", want.errs
		if _, err := c.Up(t.Context(), req); err == nil || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%v, want %q", err, want.text)
		}
		if left := leftovers(c, f, req); len(f.toolErrs) != 0 || len(left) != 0 {
			t.Errorf("left: %v, %d errors of the tool", left, len(f.toolErrs))
		}
	}
}
