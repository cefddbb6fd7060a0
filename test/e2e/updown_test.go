//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestUpDown: for each file system `up` and `down` may be repeated, say what
// they found, and keep the data.
func TestUpDown(t *testing.T) {
	rig.RequireLoop(t)
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+fs)
			eachStore(t, 2*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) { upDown(t, r, store, fs) })
		})
	}
}

// chainJSON is what the tests look at of `up --json` and `down --json`.
type chainJSON struct {
	Device, At, FS string
	Already        bool
	MadeFS         bool `json:"made_fs"`
	Repaired       []string
	Ignored        []string `json:"ignored_flags"`
}

func chain(t *testing.T, r *rig.Rig, args ...string) chainJSON {
	t.Helper()
	var c chainJSON
	out := r.Kvbfs(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v printed %q: %v", args, out, err)
	}
	return c
}

func upDown(t *testing.T, r *rig.Rig, store, fs string) {
	at := r.Mkdir("at")
	up := []string{"up", "disk", "--size", "1G", "--fs", fs, "--at", at, "--store", store}
	first := chain(t, r, up...)
	if first.Already || !first.MadeFS || first.FS != fs {
		t.Errorf("the first up: %+v", first)
	}
	if r.Transport == "dev" && overRings(t, r.OnlyDaemon()) {
		t.Error("up mounts over io_uring, where KVBFS_TRANSPORT is dev")
	}
	keep := filepath.Join(at, "keep")
	if err := os.WriteFile(keep, []byte(fs), 0o644); err != nil {
		t.Fatal(err)
	}
	// What the mount was started with is not named, though it was not said then.
	again := chain(t, r, append(up, "--cache-size=64M", "--read-ahead=4M", "--cache=writethrough")...)
	if !again.Already || again.MadeFS || again.Device != first.Device {
		t.Errorf("up of what is up: %+v, want the same device %s", again, first.Device)
	}
	if !slices.Equal(again.Ignored, []string{"--cache-size=64M"}) {
		t.Errorf("up of what is up, with flags of the mount: %+v", again)
	}
	if n := len(r.Loops()); n != 1 {
		t.Errorf("%d loop devices after up twice", n)
	}
	// In use: named, nothing is changed.
	f, err := os.Open(keep)
	if err != nil {
		t.Fatal(err)
	}
	res := r.TryKvbfs("down", "disk")
	if res.Code != 1 {
		t.Errorf("down while a file is open: status %d\n%s", res.Code, res.All())
	}
	rig.OneLine(t, "down", res.Stderr)
	if _, err := os.ReadFile(keep); err != nil {
		t.Errorf("after a down that was refused: %v", err)
	}
	f.Close()
	other := r.Mkdir("elsewhere")
	if res := r.TryKvbfs("up", "disk", "--at", other, "--store", store); res.Code == 0 {
		t.Errorf("up at a second place: status 0\n%s", res.All())
	}
	r.Kvbfs("down", "disk")
	nothingLeft(t, r)
	if d := chain(t, r, "down", "disk"); !d.Already {
		t.Errorf("down of what is down: %+v", d)
	}
	wrong := map[string]string{"ext4": "xfs", "xfs": "ext4", "btrfs": "ext4"}[fs]
	if res := r.TryKvbfs("up", "disk", "--fs", wrong, "--at", at, "--store", store); res.Code == 0 {
		t.Errorf("up --fs %s of a disk with %s: status 0", wrong, fs)
	} else {
		rig.OneLine(t, "up", res.Stderr)
	}
	nothingLeft(t, r)
	if third := chain(t, r, "up", "disk", "--at", at, "--store", store); third.MadeFS || third.FS != fs {
		t.Errorf("up without --fs: %+v", third)
	}
	if b, err := os.ReadFile(keep); err != nil || string(b) != fs {
		t.Errorf("what was written: %q, %v", b, err)
	}
	r.Kvbfs("down", "disk")
}

// TestUpAfterCrash: whatever a crash left half, `up` puts right and `down` takes
// away: a dead daemon under a mounted disk, a disk that is attached and not
// mounted, a mount of the store and no more.
func TestUpAfterCrash(t *testing.T) {
	rig.RequireLoop(t)
	halves := map[string]func(t *testing.T, r *rig.Rig, c chainJSON, pid int){
		"daemon killed": func(t *testing.T, r *rig.Rig, c chainJSON, pid int) {
			r.Run("kill", "-9", strconv.Itoa(pid))
			rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(pid) })
		},
		"unmounted by hand": func(t *testing.T, r *rig.Rig, c chainJSON, pid int) { r.Run("umount", c.At) },
		"detached by hand": func(t *testing.T, r *rig.Rig, c chainJSON, pid int) {
			r.Run("umount", c.At)
			r.Run("losetup", "-d", c.Device)
			rig.Eventually(t, 10*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
		},
		"unmounted by hand, daemon killed": func(t *testing.T, r *rig.Rig, c chainJSON, pid int) {
			r.Run("umount", c.At)
			r.Run("kill", "-9", strconv.Itoa(pid))
			rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(pid) })
		},
	}
	for name, half := range halves {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, 2*time.Minute)
			at, store := r.Mkdir("at"), r.Memcached(256).URL()
			up := []string{"up", "disk", "--size", "512M", "--at", at, "--store", store}
			c := chain(t, r, up...)
			r.Run("sh", "-ec", `echo synced > "$0/f"; sync -f "$0"`, at)
			half(t, r, c, r.OnlyDaemon())
			chain(t, r, up...)
			if b, err := os.ReadFile(filepath.Join(at, "f")); err != nil || strings.TrimSpace(string(b)) != "synced" {
				t.Errorf("after up again: %q, %v", b, err)
			}
			if n := len(r.Loops()); n != 1 {
				t.Errorf("%d loop devices", n)
			}
			half(t, r, chain(t, r, up...), r.OnlyDaemon())
			r.Kvbfs("down", "disk")
			nothingLeft(t, r)
			m := r.Mount(store)
			dev := m.Attach("disk")
			r.Try("e2fsck", "-p", dev) // replays the journal
			r.Fsck("ext4", dev)
			r.Detach(dev)
			m.Umount()
		})
	}
}
