package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kvbfs/kvbfs/cmd/internal/daemon"
	"github.com/kvbfs/kvbfs/losetup"
)

func TestUpAndDown(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		for _, fs := range fsNames() {
			if rootless && fs != "ext4" {
				continue
			}
			t.Run(fmt.Sprintf("%s rootless=%t", fs, rootless), func(t *testing.T) {
				f := newFake()
				c, req := start(t, f)
				req.FS, req.Rootless = fs, rootless
				res, err := c.Up(t.Context(), req)
				if err != nil || res.Already || !res.CreatedVolume || !res.MadeFS || !res.StartedMount || res.FS != fs {
					t.Fatalf("Up: %+v, %v", res, err)
				}
				if _, ok := losetup.MountAt(f.table, req.At); !ok {
					t.Fatal("nothing is mounted")
				}
				calls := f.calls
				again, err := c.Up(t.Context(), req)
				if err != nil || !again.Already || again.FS != fs || f.calls != calls {
					t.Errorf("second Up did %d things: %+v, %v", f.calls-calls, again, err)
				}
				if _, err := c.Down(t.Context(), req.Name, req.At); err != nil {
					t.Fatal(err)
				}
				if left := leftovers(c, f, req); !slices.Equal(left, []string{"volume vol"}) {
					t.Errorf("Down left %v", left)
				}
				if res, err := c.Down(t.Context(), req.Name, ""); err != nil || !res.Already {
					t.Errorf("second Down: %+v, %v", res, err)
				}
			})
		}
	}
}

// Each call of Up fails in turn, before or after its effect: all is taken back.
func TestAFailedUpLeavesNothing(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		for _, after := range []bool{false, true} {
			for _, cancelled := range []bool{false, true} {
				n := 1
				for ; ; n++ {
					f := newFake()
					c, req := start(t, f)
					req.Rootless = rootless
					ctx, cancel := context.WithCancel(t.Context())
					f.failAt, f.after = n, after
					if cancelled {
						f.cancel = cancel
					}
					_, err := c.Up(ctx, req)
					cancel()
					if err == nil {
						break
					}
					if !errors.Is(err, errInjected) && !errors.Is(err, context.Canceled) {
						t.Errorf("rootless=%t after=%t call %d: %v", rootless, after, n, err)
					}
					if left := leftovers(c, f, req); len(left) > 0 {
						t.Errorf("rootless=%t after=%t call %d: left %v", rootless, after, n, left)
					}
				}
				if n < 5 {
					t.Errorf("only %d calls were tried", n-1)
				}
			}
		}
	}
}

func TestAFailedUpKeepsWhatWasThere(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	f.serve("/mnt/all", testStore)
	f.volumes["vol"], f.sizes["vol"] = make([]byte, probeSize), DefaultSize
	f.failAt, f.after = 3, true // attach, mkfs, mount
	if _, err := c.Up(t.Context(), req); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	left := leftovers(c, f, req)
	if !slices.Equal(left, []string{"mount /mnt/all", "volume vol"}) {
		t.Errorf("left %v", left)
	}
	if got := identify(f.volumes["vol"]); got != empty && got != "ext4" {
		t.Errorf("the volume holds %q", got)
	}
}

func TestUpAfterTheDaemonDied(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	f.crash()
	res, err := c.Up(t.Context(), req)
	if err != nil || res.Already || res.CreatedVolume || res.MadeFS || !res.StartedMount {
		t.Fatalf("Up: %+v, %v", res, err)
	}
	if len(res.Repaired) != 3 || !slices.Equal(res.Repaired, f.said) {
		t.Errorf("it says %q, told %q, want file system, device and mount", res.Repaired, f.said)
	}
	if len(f.devices) != 1 || len(f.table) != 2 {
		t.Errorf("devices %v, mounts %v", f.devices, f.table)
	}
	f.crash()
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(c, f, req); !slices.Equal(left, []string{"volume vol"}) {
		t.Errorf("Down after a crash left %v", left)
	}
}

func TestADeadDeviceThatIsHeldGoesLater(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	device := f.devices[0].Path
	f.crash()
	f.users[device] = []string{"open in process 1 (x)"}
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.later, []string{device}) {
		t.Errorf("detached later: %v, want %s", f.later, device)
	}
}

func TestAFileSystemHalfMadeIsMadeAnew(t *testing.T) {
	for content, want := range map[string]bool{unknown: true, half: true, "ext4": true, "swap": false} {
		f := newFake()
		c, req := start(t, f)
		f.serve("/mnt/all", testStore)
		head := make([]byte, probeSize)
		f.volumes["vol"], f.sizes["vol"] = head, DefaultSize
		switch content {
		case unknown:
			head[70000] = 1
		case half:
			copy(head[0x10040:], "!BHRfS_M")
		case "ext4":
			writeMagic(head, "mke2fs")
		case "swap":
			copy(head[4086:], "SWAPSPACE2")
		}
		before := slices.Clone(head)
		if err := c.save(&record{Name: "vol", Store: testStore, At: req.At, Mkfs: true, Inode: 1}); err != nil {
			t.Fatal(err)
		}
		_, err := c.Up(t.Context(), req)
		if (err == nil) != want {
			t.Errorf("%s: %v", content, err)
		}
		if content == "ext4" || content == "swap" {
			if !slices.Equal(before, head) {
				t.Errorf("%s: the volume was changed", content)
			}
		}
	}
}

func TestUpRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *fake, c *Chain, req *Request)
		want   string
	}{
		"a mount point in use": {func(f *fake, _ *Chain, req *Request) {
			f.table = append(f.table, losetup.Mount{Point: req.At, Type: "tmpfs", Source: "tmpfs"})
		}, "mount point already"},
		"another file system": {func(f *fake, _ *Chain, req *Request) {
			writeMagic(f.volumes["vol"], "mkfs.xfs")
			req.FS = "ext4"
		}, "holds xfs, not ext4"},
		"raw data":     {func(f *fake, _ *Chain, _ *Request) { f.volumes["vol"][999999] = 1 }, "unknown kind"},
		"another size": {func(_ *fake, _ *Chain, req *Request) { req.Size = 4096 }, "resize"},
		"up elsewhere": {func(f *fake, _ *Chain, _ *Request) {
			f.devices = append(f.devices, losetup.Device{Path: "/dev/loop90", Backing: "/mnt/all/vol"})
			f.table = append(f.table, losetup.Mount{Point: "/other", Type: "ext4", Source: "/dev/loop90"})
		}, "up already, on /other"},
		"up with another size": {func(f *fake, _ *Chain, req *Request) {
			f.devices = append(f.devices, losetup.Device{Path: "/dev/loop90", Backing: "/mnt/all/vol", Size: 8 << 20})
			f.table = append(f.table, losetup.Mount{Point: req.At, Type: "ext4", Source: "/dev/loop90"})
			req.Size = 4 << 20
		}, "is up with 8M, not 4M"},
		"up from another store": {func(f *fake, c *Chain, req *Request) {
			f.serve("/mnt/one", "file:///another")
			f.devices = append(f.devices, losetup.Device{Path: "/dev/loop90", Backing: "/mnt/one/vol"})
			f.table = append(f.table, losetup.Mount{Point: "/other", Type: "ext4", Source: "/dev/loop90"})
			if err := c.save(&record{Name: "vol", Store: "file:///another", Dir: "/mnt/one", Device: "/dev/loop90", At: "/other"}); err != nil {
				panic(err)
			}
		}, "up from another store (file:///another)"},
		"a place with files": {func(_ *fake, _ *Chain, req *Request) {
			if err := os.MkdirAll(filepath.Join(req.At, "file"), 0o700); err != nil {
				panic(err)
			}
		}, "is not empty"},
		"a bad name":   {func(_ *fake, _ *Chain, req *Request) { req.Name = "../x" }, "not a volume name"},
		"no place":     {func(_ *fake, _ *Chain, req *Request) { req.At = "" }, "--at"},
		"ntfs":         {func(_ *fake, _ *Chain, req *Request) { req.FS = "ntfs" }, "ext4, xfs and btrfs"},
		"rootless xfs": {func(_ *fake, _ *Chain, req *Request) { req.FS, req.Rootless = "xfs", true }, "ext4 only"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			c, req := start(t, f)
			f.serve("/mnt/all", testStore)
			f.volumes["vol"], f.sizes["vol"] = make([]byte, probeSize), DefaultSize
			tt.change(f, c, &req)
			table, devices, head := len(f.table), len(f.devices), slices.Clone(f.volumes["vol"])
			_, err := c.Up(t.Context(), req)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want an error with %q", err, tt.want)
			}
			if len(f.table) != table || len(f.devices) != devices || !slices.Equal(head, f.volumes["vol"]) {
				t.Errorf("it changed something: %v %v", f.table, f.devices)
			}
		})
	}
}

func TestDownRefusesWhileInUse(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	calls := f.calls
	f.users[req.At] = []string{"process 5 (editor)"}
	if _, err := c.Down(t.Context(), req.Name, ""); err == nil || !strings.Contains(err.Error(), "process 5 (editor)") {
		t.Errorf("Down: %v, want one that names the process", err)
	}
	if _, err := c.Down(t.Context(), req.Name, "/elsewhere"); !errors.Is(err, ErrUsage) {
		t.Errorf("Down at another place: %v, want ErrUsage", err)
	}
	if f.calls != calls {
		t.Errorf("a refused Down did %d things", f.calls-calls)
	}
	delete(f.users, req.At)
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Error(err)
	}
}

func TestDownSaysWhatItWaitsFor(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	if _, err := c.Up(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	f.silent = []string{"host:11211"}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Down(ctx, req.Name, ""); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "kvbfs down vol") {
		t.Errorf("an interrupted Down: %v, want one that says how to go on", err)
	}
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Error(err)
	}
	if len(f.said) != 1 || !strings.Contains(f.said[0], "host:11211") || !strings.Contains(f.said[0], "umount --force "+c.privateDir(testStore)) {
		t.Errorf("it told %q", f.said)
	}
}

func TestAMountIsSharedAndStoppedByTheLast(t *testing.T) {
	f := newFake()
	c, one := start(t, f)
	two := one
	two.Name, two.At = "two", filepath.Join(t.TempDir(), "two")
	for _, req := range []Request{one, two} {
		if _, err := c.Up(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.daemons) != 1 {
		t.Fatalf("%d daemons serve one store", len(f.daemons))
	}
	res, err := c.Down(t.Context(), one.Name, "")
	if err != nil || len(res.Left) != 1 || !strings.Contains(res.Left[0], "volume two") || len(f.daemons) != 1 {
		t.Errorf("Down of the first: %+v, %v, %d daemons", res, err, len(f.daemons))
	}
	if res, err := c.Down(t.Context(), two.Name, ""); err != nil || len(res.Left) != 0 || len(f.daemons) != 0 {
		t.Errorf("Down of the last: %+v, %v, %d daemons", res, err, len(f.daemons))
	}
}

func TestAUsersOwnMountIsUsedAndKept(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	f.serve("/mnt/all", testStore)
	res, err := c.Up(t.Context(), req)
	if err != nil || res.StartedMount || res.Dir != "/mnt/all" {
		t.Fatalf("Up: %+v, %v", res, err)
	}
	if _, err := c.Down(t.Context(), req.Name, ""); err != nil {
		t.Fatal(err)
	}
	if len(f.daemons) != 1 {
		t.Error("Down stopped a mount that Up did not start")
	}
}

// Flags of the mount go to the mount that Up starts; of one that is there already it
// says that they have no effect, but not when it has them.
func TestMountFlags(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	size := func(mib int64) MountFlag {
		return MountFlag{fmt.Sprintf("--cache-size=%dM", mib), func(m daemon.Caching) bool { return m.Size == mib<<20 }}
	}
	ahead := MountFlag{"--read-ahead=4M", func(m daemon.Caching) bool { return m.ReadAhead == 4<<20 }}
	req.MountFlags = []MountFlag{size(64)}
	f.caching = &daemon.Caching{Size: 64 << 20, ReadAhead: 4 << 20}
	for range 2 {
		if _, err := c.Up(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(f.mounts, texts(req.MountFlags)) || len(f.said) != 0 {
		t.Errorf("mounts were started with %q; it says %q", f.mounts, f.said)
	}
	// Only what differs is named, with what to do; also where it is to be switched off.
	for _, mib := range []int64{128, 0} {
		f.said = nil
		req.MountFlags = []MountFlag{size(mib), ahead}
		res, err := c.Up(t.Context(), req)
		if err != nil || len(f.said) != 1 || !slices.Equal(res.Ignored, []string{size(mib).Text}) ||
			!strings.Contains(f.said[0], size(mib).Text+" has no effect") || !strings.Contains(f.said[0], "`kvbfs down "+req.Name+"`") {
			t.Errorf("Up with other flags: %+v, %v; it says %q", res, err, f.said)
		}
	}
}

// A mount that the user made is ended by the user; one that does not say what it was
// told may not have what is asked for.
func TestMountFlagsOnAUsersMount(t *testing.T) {
	f := newFake()
	c, req := start(t, f)
	f.serve("/mnt/all", testStore)
	req.MountFlags = []MountFlag{{"--cache=writeback", func(m daemon.Caching) bool { return m.WriteBack }}}
	if _, err := c.Up(t.Context(), req); err != nil || len(f.said) != 1 || !strings.Contains(f.said[0], "`kvbfs umount /mnt/all`") {
		t.Errorf("Up: %v; it says %q", err, f.said)
	}
}

func TestIdentify(t *testing.T) {
	at := func(off int, s string) []byte {
		b := make([]byte, probeSize)
		copy(b[off:], s)
		return b
	}
	xfsHalf := at(0, "XFSB")
	xfsHalf[xfsInProgress] = 1
	ext := func(compat, incompat byte) []byte {
		b := at(1024+56, "\x53\xef")
		b[1024+92], b[1024+96] = compat, incompat
		return b
	}
	for want, heads := range map[string][][]byte{
		empty:               {nil, make([]byte, probeSize)},
		"xfs":               {at(0, "XFSB")},
		"btrfs":             {at(0x10040, "_BHRfS_M")},
		half:                {xfsHalf, at(0x10040, "!BHRfS_M")},
		"ext2":              {ext(0, 0)},
		"ext3":              {ext(4, 0)},
		"ext4":              {ext(4, 0x40), ext(0, 0x80)},
		"a partition table": {at(510, "\x55\xaa"), at(4096, "EFI PART")},
		unknown:             {at(probeSize-1, "x"), at(0, "hello")},
	} {
		for _, head := range heads {
			if got := identify(head); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
}

// FuzzIdentify: whatever two pieces a volume begins with, somewhere, it is told by one
// of our words, and it is called empty if and only if it is.
func FuzzIdentify(f *testing.F) {
	words := map[string]bool{empty: true, unknown: true, half: true, "ext2": true, "ext3": true, "ext4": true, "a partition table": true}
	for _, s := range signatures {
		words[s.name] = true
		f.Add([]byte(s.magic), uint32(s.off), []byte("\x01"), uint32(xfsInProgress), uint32(0))
	}
	f.Add([]byte("\x53\xef"), uint32(1024+56), []byte("\x04\x00\x00\x00\x40"), uint32(1024+92), uint32(0))
	f.Add([]byte("\x55\xaa"), uint32(510), []byte{}, uint32(0), uint32(66000))
	var head [0x10040 + 64]byte // zeros between executions; all signatures fit
	f.Fuzz(func(t *testing.T, a []byte, at uint32, b []byte, bt, cut uint32) {
		a, b = a[:min(len(a), 2048)], b[:min(len(b), 2048)]
		inA, inB := head[at%uint32(len(head)):], head[bt%uint32(len(head)):]
		copy(inA, a)
		copy(inB, b)
		seen := head[:uint32(len(head))-cut%uint32(len(head)+1)]
		got := identify(seen)
		if zeros := bytes.Count(seen, []byte{0}) == len(seen); !words[got] || (got == empty) != zeros {
			t.Errorf("%q: all zeros %v", got, zeros)
		}
		clear(inA[:min(len(inA), len(a))])
		clear(inB[:min(len(inB), len(b))])
	})
}

func TestMakeDirs(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "a", "b")
	made, err := makeDirs(dir)
	if err != nil || !slices.Equal(made, []string{filepath.Join(base, "a"), dir}) {
		t.Fatalf("%v, %v", made, err)
	}
	if err := os.WriteFile(filepath.Join(base, "a", "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removeDirs(made)
	if _, err := os.Stat(dir); err == nil {
		t.Error("the empty directory is still there")
	}
	if _, err := os.Stat(filepath.Join(base, "a", "file")); err != nil {
		t.Error("a file of the user was removed")
	}
}

func TestChildErrorIsOneLine(t *testing.T) {
	for said, want := range map[string]string{
		"":                                     "mke2fs: exit",
		"mke2fs: bad option\nUsage: ...\n":     "mke2fs: bad option",
		"waiting\nkvbfs: store is not there\n": "store is not there",
	} {
		if got := childError("mke2fs", said, errors.New("exit")).Error(); got != want {
			t.Errorf("%q: got %q, want %q", said, got, want)
		}
	}
}
