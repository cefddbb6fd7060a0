//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// onlyFUSE makes a /dev with nothing in it but fuse and what every program has,
// drops root for good and runs a command in a user and mount namespace of its
// own: the least that a container gives.
const onlyFUSE = `
mount -t tmpfs none /dev
mknod -m 666 /dev/fuse c 10 229
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/urandom c 1 9
exec setpriv --reuid 65534 --regid 65534 --clear-groups `

// nobody makes a scratch directory that uid 65534 can use and returns it.
func nobody(t *testing.T, r *rig.Rig) string {
	t.Helper()
	if err := os.Chmod(r.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := r.Mkdir("tmp")
	if err := os.Chown(tmp, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	return tmp
}

// TestRootless: as nobody, with only /dev/fuse, the demo ends with equal
// checksums.
func TestRootless(t *testing.T) {
	rig.RequireRoot(t) // to become nobody, and for the empty /dev
	rig.RequireFUSE(t)
	rig.Require(t, "unshare", "setpriv", "mke2fs", "debugfs")
	r := rig.New(t, 3*time.Minute)
	tmp := nobody(t, r)
	res := r.Must(rig.Cmd{Dir: tmp, Env: []string{"TMPDIR=" + tmp, "HOME=" + tmp},
		Args: []string{"unshare", "-m", "sh", "-ec", onlyFUSE + `unshare -Urm "$@"`, "sh", r.Bin, "demo", "--json"}})
	d := checkDemo(t, res.Stdout)
	t.Logf("the way that it took: %s", d.Way)
	if strings.HasPrefix(d.Way, "ext4 on a loop") {
		t.Errorf("a loop device without root? %s", d.Way)
	}
	nothingLeft(t, r, tmp)
}

// TestContainer: a root directory with the binary and e2fsprogs alone is enough.
func TestContainer(t *testing.T) {
	rig.RequireRoot(t)
	rig.RequireFUSE(t)
	rig.Require(t, "unshare", "setpriv", "mke2fs", "e2fsck", "debugfs", "ldd")
	r := rig.New(t, 3*time.Minute)
	nobody(t, r)
	root := r.Mkdir("root")
	for _, d := range []string{"dev", "proc", "bin", "etc"} {
		r.Mkdir("root", d)
	}
	if err := os.Chown(r.Mkdir("root", "tmp"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	install(t, r, root, r.Bin, "kvbfs")
	for _, tool := range []string{"mke2fs", "e2fsck", "debugfs"} {
		install(t, r, root, strings.TrimSpace(r.Run("sh", "-c", "command -v "+tool)), tool)
	}
	if conf, err := os.ReadFile("/etc/mke2fs.conf"); err == nil {
		if err := os.WriteFile(filepath.Join(root, "etc", "mke2fs.conf"), conf, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`
mount --bind /proc %[1]s/proc
mount -t tmpfs none %[1]s/dev
mknod -m 666 %[1]s/dev/fuse c 10 229
mknod -m 666 %[1]s/dev/null c 1 3
exec setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Urm -R %[1]s -w / /bin/kvbfs demo --json`, root)
	res := r.Must(rig.Cmd{Args: []string{"unshare", "-m", "sh", "-ec", script}, Env: []string{"PATH=/bin:/usr/bin:/usr/sbin", "TMPDIR=/tmp", "HOME=/tmp"}})
	d := checkDemo(t, res.Stdout)
	if !strings.Contains(d.Way, "debugfs") {
		t.Errorf("with mke2fs and debugfs alone it took %s", d.Way)
	}
	if len(d.Results["checksums"]) != 1 {
		t.Errorf("without memcached there are %d columns", len(d.Results["checksums"]))
	}
}

// install copies a program and the libraries that it needs into a root.
func install(t *testing.T, r *rig.Rig, root, program, name string) {
	t.Helper()
	r.Run("cp", "-L", program, filepath.Join(root, "bin", name))
	for line := range strings.Lines(r.Try("ldd", program).Stdout) {
		for _, f := range strings.Fields(line) {
			if !strings.HasPrefix(f, "/") {
				continue
			}
			to := filepath.Join(root, f)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			r.Run("cp", "-L", f, to)
			break
		}
	}
}
