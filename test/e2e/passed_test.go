//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestPassed: a privileged parent mounts, and a kvbfs without any privilege
// serves the connection that it got as /dev/fd/N.
func TestPassed(t *testing.T) {
	rig.RequireRoot(t)
	rig.RequireFUSE(t)
	eachStore(t, time.Minute, 128, func(t *testing.T, r *rig.Rig, store string) {
		home := nobody(t, r)
		dir := r.Mkdir("passed")
		fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer fuse.Close()
		opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=65534,group_id=65534,allow_other,default_permissions", fuse.Fd())
		if err := unix.Mount("passed", dir, "fuse.kvbfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
			t.Fatalf("mount: %v", err)
		}
		if store == r.FileStore() {
			store = "file://" + filepath.Join(home, "store")
		} else if err := os.Chmod(filepath.Join(r.Dir, "memcached0.sock"), 0o666); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(r.Bin, "mount", "/dev/fd/3", "-f", "--store", store)
		cmd.ExtraFiles = []*os.File{fuse}
		cmd.Env = append(r.Env(), "HOME="+home, "KVBFS_STATE_DIR="+home+"/state", "KVBFS_RUNTIME_DIR="+home+"/run")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		log, err := os.Create(r.Path("log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fuse.Close() // else the mount would outlive the daemon

		// The child serves at some time; until then requests wait in the kernel,
		// so a command of its own asks.
		image := filepath.Join(dir, "v")
		said := func() string { b, _ := os.ReadFile(r.Path("log")); return string(b) }
		if res := r.Do(rig.Cmd{Args: []string{"truncate", "-s", "16M", image}, Limit: 20 * time.Second}); res.Code != 0 {
			t.Fatalf("making a volume: %s\nthe daemon said: %s", res.All(), said())
		}
		f := rig.Direct(t, image)
		fill(t, f, 64, 1)
		got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
		rig.Stamp(want, 33, 1)
		if err := f.ReadAt(got, 33*rig.BlockSize); err != nil || string(got) != string(want) {
			t.Errorf("reading back: %v", err)
		}
		f.Close()
		r.Run("umount", dir)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the daemon ended with %v after umount\n%s", err, said())
			}
		case <-time.After(20 * time.Second):
			t.Errorf("the daemon is still there 20 s after umount\n%s", said())
			cmd.Process.Kill()
			<-done
		}
	})
}

// TestPassedWrong: what is no connection is refused with one line.
func TestPassedWrong(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	for what, script := range map[string]string{
		"not open":         `exec "$0" mount /dev/fd/9 -f --store mem:`,
		"a file":           `exec "$0" mount /dev/fd/9 -f --store mem: 9</dev/null`,
		"not in front":     `exec "$0" mount /dev/fd/9 --store mem: 9<>/dev/fuse`,
		"not mounted fuse": `exec "$0" mount /dev/fd/9 -f --store mem: 9<>/dev/fuse`,
	} {
		res := r.Do(rig.Cmd{Args: []string{"sh", "-c", script, r.Bin}, Limit: 20 * time.Second})
		if res.Code != 1 && res.Code != 2 {
			t.Errorf("%s: status %d after %v\n%s", what, res.Code, res.Took, res.All())
		}
		rig.OneLine(t, what, res.Stderr)
	}
}
