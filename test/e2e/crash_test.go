//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// cycles is how often the daemon is killed per case; KVBFS_E2E_CYCLES raises it.
func cycles(t *testing.T) int {
	if s := os.Getenv("KVBFS_E2E_CYCLES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 5
}

// TestCrash kills the daemon in mid-write, again and again: no write that was
// acknowledged is lost, no block is torn, and none comes back older.
func TestCrash(t *testing.T) {
	rig.RequireFUSE(t)
	everyStore(t, 4*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) {
		if r.Defers() {
			t.Skip("with write-back a crash of the daemon loses what was not flushed: TestWriteBackCrash")
		}
		t.Run("image", func(t *testing.T) { crash(t, r, store, "image", false, cycles(t)) })
		t.Run("loop", func(t *testing.T) {
			rig.RequireLoop(t)
			crash(t, r, store, "loop", true, cycles(t))
		})
	})
}

func crash(t *testing.T, r *rig.Rig, store, volume string, loop bool, kills int) {
	const blocks = 8192
	rnd := rig.Rand(t)
	r.Create(store, volume, strconv.Itoa(blocks*rig.BlockSize))
	m := r.Mount(store)
	led := rig.NewLedger(blocks)
	for range kills {
		path, dev := m.Image(volume), ""
		if loop {
			dev = m.Attach(volume)
			path = dev
		}
		f, err := rig.OpenDirect(path)
		if err != nil {
			t.Fatal(err)
		}
		led.Verify(t, f)
		before := led.Acknowledged()
		after, pid := time.Duration(rnd.IntN(400))*time.Millisecond, m.PID()
		go func() {
			// Once it has begun, however long that takes.
			for end := time.Now().Add(time.Minute); led.Acknowledged() == before && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(after)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}()
		led.Storm(f, 16, rnd.Uint64())
		f.Close()
		if led.Acknowledged() == before {
			t.Error("nothing was written before the kill: not much of a test")
		}
		if loop {
			r.Run("losetup", "-d", dev)
			rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
		}
		rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(m.PID()) })
		r.Try("umount", "-l", m.Dir)
		m.Mount(store)
	}
	f := rig.Direct(t, m.Image(volume))
	led.Verify(t, f)
	f.Close()
	m.Umount()
	t.Logf("%d acknowledged writes over %d kills, none lost", led.Acknowledged(), kills)
}

// TestPowerCut kills the daemon under fio, which has just saved what was acknowledged
// ("verify state"), and has fio look for that: on the image and on a loop device, over
// what the cuts before have left.
func TestPowerCut(t *testing.T) {
	rig.RequireLoop(t)
	rig.Require(t, "fio")
	everyStore(t, 4*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) {
		if r.Defers() {
			t.Skip("with write-back a crash of the daemon loses what was not flushed: TestWriteBackCrash")
		}
		r.Create(store, "v", "256M")
		m := r.Mount(store)
		seed := rig.Seed(t) >> 1 // fio's are signed
		found := 0
		for i := range 4 {
			target, loop := m.Image("v"), i%2 == 1
			if loop {
				target = m.Attach("v")
			}
			seed++
			// Its status is that of writes that met the end of the daemon, or of none.
			r.Do(powerCut(t, r, target, seed, "--do_verify=0", "--trigger-timeout=1", fmt.Sprintf("--trigger=kill -9 %d", m.PID())))
			rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(m.PID()) })
			if loop {
				r.Run("losetup", "-d", target)
				rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
			}
			r.Try("umount", "-l", m.Dir)
			m.Mount(store)
			n := verified(t, r.Must(powerCut(t, r, m.Image("v"), seed, "--verify_only=1", "--verify_state_load=1")))
			if n == 0 {
				t.Error("nothing was acknowledged before the cut: not much of a test")
			}
			found += n
		}
		t.Logf("%d writes that were acknowledged before 4 power cuts: all there", found)
		m.Umount()
	})
}

// powerCut is fio with its job.
func powerCut(t *testing.T, r *rig.Rig, target string, seed uint64, more ...string) rig.Cmd {
	t.Helper()
	return rig.Cmd{Args: append([]string{"fio", "--output-format=json", "--aux-path=" + r.Dir, fmt.Sprintf("--randseed=%d", seed)},
		append(more, filepath.Join(rig.ModuleRoot(t), "test", "fio", "power-cut.fio"))...), Dir: r.Dir, Env: []string{"TARGET=" + target}}
}

// verified is how many blocks fio has verified.
func verified(t *testing.T, res rig.Result) (blocks int) {
	t.Helper()
	var report struct {
		Jobs []struct {
			Error int
			Read  struct {
				IOs int `json:"total_ios"`
			}
		}
	}
	out := res.Stdout[max(0, strings.Index(res.Stdout, "{")):]
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&report); err != nil || len(report.Jobs) == 0 {
		t.Fatalf("fio: %v\n%s", err, res.All())
	}
	for _, job := range report.Jobs {
		if job.Error != 0 {
			t.Fatalf("fio: %s", res.All())
		}
		blocks += job.Read.IOs
	}
	return blocks
}

// TestMachineCrash: a machine that crashes loses the daemon and, with tmpfs, what
// it kept beside the store. What was flushed before is there; of what was not, each
// block is old, new or zeros, and none is an error.
func TestMachineCrash(t *testing.T) {
	mostlyWaits(t)
	rig.RequireFUSE(t)
	eachStore(t, 2*time.Minute, 256, func(t *testing.T, r *rig.Rig, store string) {
		const flushed, more = 1024, 1536
		r.Create(store, "v", "64M")
		m := r.Mount(store)
		f := rig.Direct(t, m.Image("v"))
		fill(t, f, flushed, 1) // flushes
		buf := rig.Aligned(rig.BlockSize)
		for i := int64(flushed / 2); i < more; i++ {
			rig.Stamp(buf, i, 2)
			if err := f.WriteAt(buf, i*rig.BlockSize); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		m.Kill()
		r.Run("sh", "-c", `rm -rf "$0"/*`, r.RuntimeDir()) // the reboot
		m.Mount(store)
		f = rig.Direct(t, m.Image("v"))
		want := make([]byte, rig.BlockSize)
		for i := range int64(more + 64) {
			if err := f.ReadAt(buf, i*rig.BlockSize); err != nil {
				t.Fatalf("block %d: %v", i, err)
			}
			versions := []uint64{1}
			switch {
			case i >= more:
				versions = []uint64{0}
			case i >= flushed:
				versions = []uint64{0, 2}
			case i >= flushed/2:
				versions = []uint64{1, 2}
			}
			fits := false
			for _, v := range versions {
				rig.Stamp(want, i, v)
				fits = fits || string(buf) == string(want)
			}
			if !fits {
				t.Fatalf("block %d is none of the versions %v", i, versions)
			}
		}
		fill(t, f, 64, 3) // and it can be written to
		f.Close()
		m.Umount()
	})
}

// TestCrashFileSystem kills the daemon under a mounted ext4: after the journal's
// replay the file system is clean and has what was synced.
func TestCrashFileSystem(t *testing.T) {
	rig.RequireLoop(t)
	eachStore(t, 3*time.Minute, 512, func(t *testing.T, r *rig.Rig, store string) {
		r.Create(store, "disk", "512M")
		m := r.Mount(store)
		dev := m.Attach("disk")
		r.Mkfs("ext4", dev)
		dir := r.MountFS(dev, "ext4")
		r.Run("cp", "-a", goroot(t, r)+"/src/net", dir+"/kept")
		r.Run("sync", "-f", dir)
		want := rig.ReadTree(t, dir+"/kept")
		src := goroot(t, r) + "/src/cmd"
		time.AfterFunc(300*time.Millisecond, func() { _ = syscall.Kill(m.PID(), syscall.SIGKILL) })
		r.Try("cp", "-a", src, dir+"/cut") // ends with an error
		rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(m.PID()) })
		r.Run("umount", dir)
		r.Try("losetup", "-d", dev)
		rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
		r.Try("umount", "-l", m.Dir)

		m.Mount(store)
		dev = m.Attach("disk")
		dir = r.MountFS(dev, "ext4")
		rig.SameTree(t, want, rig.ReadTree(t, dir+"/kept"))
		r.UmountFS(dir)
		r.Fsck("ext4", dev)
		r.Detach(dev)
		m.Umount()
	})
}
