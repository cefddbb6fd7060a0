package chain

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/losetup"
)

// What was opened on a new mount at once keeps it when the run is interrupted. Below
// it nothing is taken back: the volume is not wiped, and `down` ends it all later.
func TestRollbackStopsBelowWhatIsStillMounted(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		f := newFake()
		c, req := start(t, f)
		req.Rootless = rootless
		f.serve("/mnt/all", testStore)
		f.volumes["vol"], f.sizes["vol"] = make([]byte, probeSize), DefaultSize // empty, and there before
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.sys = &endsMounted{f, cancel}
		f.users[req.At] = []string{"indexer (pid 9)"}
		if _, err := c.Up(ctx, req); err == nil || !strings.Contains(err.Error(), "kvbfs down") {
			t.Errorf("rootless=%t: Up: %v, want what to do", rootless, err)
		}
		if _, ok := losetup.MountAt(f.table, req.At); !ok {
			t.Fatalf("rootless=%t: the test is wrong: nothing stays mounted", rootless)
		}
		if got := identify(f.volumes["vol"]); got != "ext4" {
			t.Errorf("rootless=%t: below the mount the volume holds %q", rootless, got)
		}
		said := strings.Join(f.said, "\n")
		for _, want := range []string{"unmount " + req.At, "empty volume vol again", "kvbfs down vol"} {
			if !strings.Contains(said, want) {
				t.Errorf("rootless=%t: it says %q, without %q", rootless, said, want)
			}
		}
		if _, err := c.Down(t.Context(), req.Name, ""); err == nil || !strings.Contains(err.Error(), "indexer") {
			t.Errorf("rootless=%t: Down while it is used: %v", rootless, err)
		}
		clear(f.users)
		if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
			t.Errorf("rootless=%t: Down: %v", rootless, err)
		}
		if left := leftovers(c, f, req); !slices.Equal(left, []string{"mount /mnt/all", "volume vol"}) {
			t.Errorf("rootless=%t: Down left %v", rootless, left)
		}
	}
}

// endsMounted ends the run when the file system is mounted.
type endsMounted struct {
	*fake
	cancel context.CancelFunc
}

func (e *endsMounted) Mount(ctx context.Context, device, at string, fs filesystem) error {
	defer e.cancel()
	return e.fake.Mount(ctx, device, at, fs)
}

func (e *endsMounted) Spawn(name string, args ...string) (int, error) {
	defer e.cancel()
	return e.fake.Spawn(name, args...)
}

// Another mount over the new one hides it from the unmount: it still is there.
func TestRollbackStopsBelowWhatIsHidden(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	f.serve("/mnt/all", testStore)
	f.volumes["vol"], f.sizes["vol"] = make([]byte, probeSize), DefaultSize
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.failAt, f.after = 3, true // attach, mkfs, mount
	f.cancel = func() {
		cancel()
		f.table = append(f.table, losetup.Mount{Point: req.At, Type: "tmpfs", Source: "tmpfs"})
	}
	_, err := c.Up(ctx, req)
	if got := identify(f.volumes["vol"]); err == nil || got != "ext4" || len(f.devices) != 1 {
		t.Errorf("Up: %v; the volume holds %q, devices %v", err, got, f.devices)
	}
	if said := strings.Join(f.said, "\n"); !strings.Contains(said, "still mounted on "+req.At) {
		t.Errorf("it says %q", said)
	}
}

// What the rest does not carry keeps nothing: a volume that cannot be emptied again is
// detached all the same, and the record says that a file system is half made on it.
func TestRollbackGoesOnWhereNothingIsCarried(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	f.volumes["vol"], f.sizes["vol"] = make([]byte, probeSize), DefaultSize
	f.failAt, f.after = 3, true // mount, attach, mkfs
	s := &cannotWipe{f}
	c.sys = s
	if _, err := c.Up(t.Context(), req); err == nil {
		t.Fatal("mkfs failed, and Up did not")
	}
	if len(f.devices) != 0 || len(f.table) != 0 {
		t.Errorf("left devices %v, mounts %v; it says %q", f.devices, f.table, f.said)
	}
	if rec, err := c.load(req.Name); err != nil || rec == nil || !rec.Mkfs || rec.Inode != 1 {
		t.Errorf("the record: %+v, %v", rec, err)
	}
}

type cannotWipe struct{ *fake }

func (c *cannotWipe) Wipe(context.Context, string, int) error { return errInjected }
