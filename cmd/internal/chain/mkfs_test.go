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

// A run that was killed in mkfs left its record. The volume was removed, and another one
// of that name holds raw data now.
func TestAMarkOfMkfsIsForItsVolumeOnly(t *testing.T) {
	for _, inode := range []uint64{0, 1} { // 0: a record of an earlier kvbfs
		f := newFake()
		c, req := start(t, f)
		f.create("vol")
		f.create("vol")
		copy(f.volumes["vol"], "precious")
		rec := record{Name: "vol", Store: testStore, Dir: c.privateDir(testStore), At: req.At, FS: "ext4", Mkfs: true, Inode: inode}
		if err := c.save(&rec); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Up(t.Context(), req); err == nil || !strings.Contains(err.Error(), unknown) {
			t.Errorf("inode %d: Up: %v", inode, err)
		}
		if !strings.HasPrefix(string(f.volumes["vol"]), "precious") {
			t.Errorf("inode %d: data of an unknown kind was wiped; it says %q", inode, f.said)
		}
		f.serve("/mnt/all", testStore) // the record stays then
		if err := c.save(&rec); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Up(t.Context(), req); err == nil {
			t.Error("Up again succeeded")
		}
		if after, err := c.load("vol"); err != nil || after == nil || after.Mkfs {
			t.Errorf("inode %d: the record: %+v, %v", inode, after, err)
		}
	}
}

// killedInMkfs is a volume that was empty, and is half made.
func killedInMkfs(t *testing.T) (*fake, *Chain, Request) {
	f := newFake()
	c, req := start(t, f)
	f.serve("/mnt/all", testStore)
	f.create("vol")
	f.volumes["vol"][5000] = 1
	rec := record{Name: "vol", Store: testStore, Dir: "/mnt/all", At: req.At, FS: "ext4", Mkfs: true, Inode: 2}
	if err := c.save(&rec); err != nil {
		t.Fatal(err)
	}
	return f, c, req
}

// The next run fails as well: the mark stays as long as the volume is half made, and
// goes when it was emptied.
func TestAMarkOfMkfsGoesWithWhatWasHalfMade(t *testing.T) {
	for n := 1; n <= 4; n++ { // attach, wipe, mkfs, mount
		f, c, req := killedInMkfs(t)
		f.failAt = n
		if _, err := c.Up(t.Context(), req); !errors.Is(err, errInjected) {
			t.Fatalf("call %d: Up: %v", n, err)
		}
		rec, err := c.load("vol")
		if err != nil || rec == nil {
			t.Fatalf("call %d: the record: %+v, %v", n, rec, err)
		}
		if holds := identify(f.volumes["vol"]); rec.Mkfs != (holds != empty) {
			t.Errorf("call %d: the volume holds %q, and the mark is %t", n, holds, rec.Mkfs)
		}
		f.failAt = 0
		if res, err := c.Up(t.Context(), req); err != nil || !res.MadeFS {
			t.Errorf("call %d: Up again: %+v, %v", n, res, err)
		}
	}
}
