package chain

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/losetup"
)

// A device whose file is spelled /NAME may be a container's, or of a file system that
// was lazily unmounted. If it works, it is not ours to take.
func TestDownLeavesAForeignDevice(t *testing.T) {
	f := newFake()
	c, _ := start(t, f)
	f.devices = []losetup.Device{{Path: "/dev/loop5", Backing: "/foreigndisk", DirectIO: true}}
	f.table = []losetup.Mount{{Point: "/srv/foreign", Type: "ext4", Source: "/dev/loop5"}}
	_, err := c.Down(t.Context(), "foreigndisk", "")
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "kvbfs detach /dev/loop5") {
		t.Errorf("Down: %v, want one that says what to do", err)
	}
	if len(f.table) != 1 || len(f.devices) != 1 || len(f.later) > 0 {
		t.Errorf("it was taken off: mounts %v, devices %v, armed %v", f.table, f.devices, f.later)
	}
	f.broken["/dev/loop5"] = true // nobody has any use of it
	if _, err := c.Down(t.Context(), "foreigndisk", ""); err != nil || len(f.table) != 0 || len(f.devices) != 0 {
		t.Errorf("Down of a dead one: %v, mounts %v, devices %v", err, f.table, f.devices)
	}
}

// hide takes the mount of the store off as `umount -l` does: its daemon lives on, and
// so does the device.
func (f *fake) hide(dir string) {
	f.table = slices.DeleteFunc(f.table, func(m losetup.Mount) bool { return m.Point == dir })
	for i := range f.devices {
		f.devices[i].Backing = "/vol"
	}
}

func TestALazilyUnmountedStoreIsNotDead(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	f.users[req.At] = []string{"postgres (pid 1)"}
	f.hide(c.privateDir(testStore))
	if _, err := c.Down(t.Context(), req.Name, ""); err == nil || !strings.Contains(err.Error(), "postgres") {
		t.Errorf("Down while it is used: %v", err)
	}
	if res, err := c.Up(t.Context(), req); err != nil || !res.Already {
		t.Errorf("Up: %+v, %v", res, err)
	}
	elsewhere := req
	elsewhere.At = t.TempDir()
	if _, err := c.Up(t.Context(), elsewhere); err == nil || !strings.Contains(err.Error(), "up already") {
		t.Errorf("Up elsewhere: %v", err)
	}
	if _, ok := losetup.MountAt(f.table, req.At); !ok || len(f.said) > 0 {
		t.Errorf("a file system in use was taken off; it says %q", f.said)
	}
	clear(f.users)
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Error(err)
	}
	if left := leftovers(c, f, req); !slices.Equal(left, []string{"volume vol"}) {
		t.Errorf("Down left %v", left)
	}
}

// Nothing is mounted on its device any more: a second one is not made beside it.
func TestUpRefusesBesideALazilyUnmountedStore(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	f.table = slices.DeleteFunc(f.table, func(m losetup.Mount) bool { return m.Point == req.At })
	f.hide(c.privateDir(testStore))
	if _, err := c.Up(t.Context(), req); err == nil || !strings.Contains(err.Error(), "`kvbfs down vol` first") {
		t.Errorf("Up: %v, want one that says what to do", err)
	}
	if len(f.devices) != 1 {
		t.Errorf("devices: %v", f.devices)
	}
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil || len(f.devices) != 0 {
		t.Errorf("Down: %v, devices %v", err, f.devices)
	}
}
