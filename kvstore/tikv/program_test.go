package tikv

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestProgram builds kvbfs with this store in it, as `make build-tikv` does, and keeps a
// file on a cluster of the mock, whose stores are all restarted in between. Where there is
// no /dev/fuse it only makes the volume.
func TestProgram(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	m := startMock(t)
	url := "tikv://" + servePD(t, m.directory)
	dir := t.TempDir()
	bin, mnt := filepath.Join(dir, "kvbfs-tikv"), filepath.Join(dir, "mnt")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "KVBFS_STATE_DIR="+filepath.Join(dir, "state"), "KVBFS_RUNTIME_DIR="+filepath.Join(dir, "run"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, d := range []string{"state", "run", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run("go", "build", "-overlay", "build/overlay.json", "-o", bin, "github.com/kvbfs/kvbfs/cmd/kvbfs")
	run(bin, "volume", "create", "v", "--size", "64M", "--store", url)
	if out := run(bin, "volume", "ls", "--store", url); !strings.Contains(out, "v ") {
		t.Errorf("volume ls:\n%s", out)
	}
	// It may find fault with this machine, too.
	if out := run("sh", "-c", `"$0" doctor "$1" || :`, bin, url); !strings.Contains(out, "experimental") {
		t.Errorf("doctor does not say that it is experimental:\n%s", out)
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no mount: %v", err)
	}
	f.Close()
	t.Cleanup(func() { takeDown(dir, mnt) })
	// Other processes touch the mount: this one has the stores.
	run("dd", "if=/dev/urandom", "of="+dir+"/data", "bs=1M", "count=8")
	run(bin, "mount", mnt, "--store", url)
	run("dd", "if="+dir+"/data", "of="+mnt+"/v", "bs=256k", "conv=notrunc,fsync")
	for _, s := range m.stores {
		s.stop()
	}
	for _, s := range m.stores {
		s.start()
	}
	run("cmp", "-n", "8388608", dir+"/data", mnt+"/v")
	if out := run(bin, "status"); !strings.Contains(out, "durability  server") {
		t.Errorf("status:\n%s", out)
	}
	run(bin, "umount", mnt)
	run(bin, "mount", mnt, "--store", url)
	run("cmp", "-n", "8388608", dir+"/data", mnt+"/v")
	run(bin, "umount", mnt)
}

// takeDown takes down what a test that failed has left.
func takeDown(dir, mnt string) {
	files, _ := filepath.Glob(filepath.Join(dir, "run", "mounts", "*.json"))
	for _, name := range files {
		var d struct {
			PID int `json:"pid"`
		}
		if text, err := os.ReadFile(name); err == nil && json.Unmarshal(text, &d) == nil && d.PID > 1 {
			_ = syscall.Kill(d.PID, syscall.SIGKILL)
		}
	}
	_ = syscall.Unmount(mnt, syscall.MNT_DETACH)
}
