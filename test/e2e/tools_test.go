//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestQEMU converts a disk into the mount and back, and lets qemu-io write and
// read patterns of odd sizes.
func TestQEMU(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "qemu-img", "qemu-io")
	eachStore(t, 2*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) {
		r.Create(store, "disk", "256M")
		m := r.Mount(store)
		image := m.Image("disk")
		src, back := r.Path("vm.qcow2"), r.Path("back.qcow2")
		r.Run("qemu-img", "create", "-q", "-f", "qcow2", src, "256M")
		r.Run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 7M", "-c", "write -P 0xa5 100M 13M", "-c", "write -P 1 255M 1M", src)
		// The README's block: its first line as it is, of its second one what the
		// drive's options mean, for qemu-io.
		convert, system, ok := strings.Cut(strings.TrimSpace(readme(t, "qemu")), "\n")
		if !ok || !strings.HasPrefix(system, "qemu-system-x86_64 ") {
			t.Fatalf("the README's block: %q, %q", convert, system)
		}
		here := strings.NewReplacer("vm.qcow2", src, "/mnt/kvb/disk", image)
		r.Run("sh", "-ec", here.Replace(convert))
		r.Run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", src, image)
		_, drive, _ := strings.Cut(here.Replace(system), "-drive ")
		options, cache, aio := driveOptions(t, drive)
		if out := r.Run("qemu-io", "-t", cache, "-i", aio, "--image-opts",
			"-c", "write -P 0x33 3M 1M", "-c", "read -P 0x33 3M 1M", "-c", "read -P 0xa5 100M 13M", "-c", "write -P 0x5a 3M 1M", options,
		); strings.Contains(out, "verification failed") {
			t.Errorf("qemu-io with the README's options:\n%s", out)
		}
		r.Run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", "-t", "none", src, image)
		r.Run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", src, image)
		r.Run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-T", "none", image, back)
		r.Run("qemu-img", "compare", src, back)

		rnd := rig.Rand(t)
		args := []string{"qemu-io", "-f", "raw", "-n"}
		var reads []string
		off := int64(0)
		for i := range 60 {
			n := 512 * (1 + rnd.Int64N(600))
			off += 512 * rnd.Int64N(900)
			args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+i, off, n))
			reads = append(reads, "-c", fmt.Sprintf("read -P %d %d %d", 1+i, off, n))
			off += n
		}
		args = append(append(append(args, "-c", "flush"), reads...), image)
		if out := r.Run(args...); strings.Contains(out, "verification failed") {
			t.Errorf("qemu-io:\n%s", out)
		}
		out := r.Run("qemu-io", "-f", "raw", "-n", "-c", "discard 1M 2M", "-c", "write -z 4M 1M",
			"-c", "read -P 0 1M 2M", "-c", "read -P 0 4M 1M", image)
		if strings.Contains(out, "verification failed") {
			t.Errorf("after discard and write-zeroes:\n%s", out)
		}
		m.Umount()
	})
}

// driveOptions takes QEMU's -drive apart: what qemu-io takes as --image-opts, -t
// and -i.
func driveOptions(t *testing.T, drive string) (options, cache, aio string) {
	t.Helper()
	opt := map[string]string{}
	for _, o := range strings.Split(strings.TrimSpace(drive), ",") {
		k, v, _ := strings.Cut(o, "=")
		opt[k] = v
	}
	if len(opt) != 4 || opt["file"] == "" || opt["format"] == "" || opt["cache"] == "" || opt["aio"] == "" {
		t.Fatalf("the README's drive: %q, want file, format, cache, aio", drive)
	}
	return "driver=" + opt["format"] + ",file.driver=file,file.filename=" + opt["file"], opt["cache"], opt["aio"]
}

// TestLosetupByHand: the image takes losetup as any file does.
func TestLosetupByHand(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "losetup")
	r := rig.New(t, time.Minute)
	m := r.Mount(r.FileStore())
	r.Run("truncate", "-s", "1G", m.Image("disk"))
	dev := strings.TrimSpace(r.Run("losetup", "--show", "-f", "--direct-io=on", "-b", "4096", m.Image("disk")))
	if dio := strings.TrimSpace(r.Run("losetup", "-n", "-O", "DIO", dev)); dio != "1" {
		t.Errorf("direct I/O is %q", dio)
	}
	r.Mkfs("ext4", dev)
	dir := r.MountFS(dev, "ext4")
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("by hand"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.UmountFS(dir)
	r.Fsck("ext4", dev)
	r.Run("losetup", "-d", dev)
	rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
	m.Umount()
}

// TestQuickStart runs the README's commands, with places and port of our own.
func TestQuickStart(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "memcached")
	for _, name := range []string{"quickstart", "byhand"} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, time.Minute)
			script := readme(t, name)
			mnt, at := r.Mkdir("kvb"), r.Mkdir("data")
			script = strings.NewReplacer("/mnt/kvb", mnt, "/mnt/data", at, "kvbfs ", r.Bin+" ").Replace(script)
			if name == "quickstart" {
				probe := r.MemcachedTCP(64)
				probe.Kill() // its port is free now
				_, port, _ := strings.Cut(probe.Addr, ":")
				script = strings.NewReplacer("11211", port, "memcached://127.0.0.1", "memcached://127.0.0.1:"+port).Replace(script)
			} else {
				r.Setenv("KVBFS_STORE", r.FileStore())
			}
			// The memcached of the quick start goes into the background with our
			// environment, so the sweep finds it.
			res := r.Must(rig.Cmd{Args: []string{"sh", "-exc", script}})
			t.Logf("%s", res.Stdout)
			if name == "quickstart" {
				if !strings.Contains(res.Stdout, at) {
					t.Errorf("df does not show %s", at)
				}
				return
			}
			if len(r.Loops()) != 1 {
				t.Errorf("the commands by hand attached %v", r.Loops())
			}
			r.Run("losetup", "-d", r.Loops()[0])
			rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
			r.Kvbfs("umount", mnt)
		})
	}
}

// TestReadmeIsTested: every block of the README that claims to be tested is, and
// the lines that other tests run are those that the README prints.
func TestReadmeIsTested(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(rig.ModuleRoot(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	tested := map[string]string{"quickstart": "TestQuickStart", "byhand": "TestQuickStart", "qemu": "TestQEMU"}
	for _, m := range regexp.MustCompile("<!-- test: (.*?) -->").FindAllStringSubmatch(string(b), -1) {
		if tested[m[1]] == "" {
			t.Errorf("no test runs the README's block %q", m[1])
		}
		delete(tested, m[1])
	}
	for name, test := range tested {
		t.Errorf("%s runs the README's block %q, which is not there", test, name)
	}
	// TestUpRootless runs these.
	for _, line := range []string{"kvbfs up data --size 1G --rootless --at ~/data", "kvbfs up data --size 1G --rootless --at /mnt/data -- sh -c "} {
		if !strings.Contains(string(b), line) {
			t.Errorf("the README no longer has the line that is tested: %s", line)
		}
	}
}

// readme returns the commands below a marker in the README.
func readme(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(rig.ModuleRoot(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile("(?s)<!-- test: " + name + " -->\n+```\n(.*?)```")
	m := re.FindSubmatch(b)
	if m == nil {
		t.Fatalf("the README has no block %q", name)
	}
	return string(m[1])
}
