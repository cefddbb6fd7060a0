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

// user is an ordinary user's world: a home, private directories below it, and a
// /dev/fuse that is open to all, as distributions have it, in a mount namespace
// of its own.
type user struct {
	t    *testing.T
	r    *rig.Rig
	home string
}

func newUser(t *testing.T, r *rig.Rig) *user {
	t.Helper()
	return &user{t, r, nobody(t, r)}
}

// do runs a script as the user, $K being kvbfs.
func (u *user) do(script string) rig.Result {
	return u.r.Do(rig.Cmd{Dir: u.home,
		Env: []string{"HOME=" + u.home, "TMPDIR=" + u.home, "K=" + u.r.Bin, "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
			"KVBFS_STATE_DIR=" + u.home + "/state", "KVBFS_RUNTIME_DIR=" + u.home + "/run"},
		Args: []string{"unshare", "-m", "sh", "-ec", `
mount -t tmpfs none /dev
mknod -m 666 /dev/fuse c 10 229
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/urandom c 1 9
ln -s /proc/self/fd /dev/fd
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec "$1"`, "sh", script}})
}

func (u *user) must(script string) string {
	u.t.Helper()
	res := u.do(script)
	if res.Code != 0 {
		u.t.Fatalf("as nobody: status %d\n%s\n%s", res.Code, script, res.All())
	}
	return res.Stdout
}

// TestUpRootless: an ordinary user has a disk by fusermount3 and fuse2fs, on
// which a tree survives `down` and `up`; and without fusermount3's help inside a
// namespace, where a command's exit status is passed on.
func TestUpRootless(t *testing.T) {
	rig.RequireRoot(t) // to become somebody else
	rig.RequireFUSE(t)
	rig.Require(t, "unshare", "setpriv", "fusermount3", "fuse2fs", "mke2fs", "e2fsck")
	t.Run("fusermount3", func(t *testing.T) {
		r := rig.New(t, 2*time.Minute)
		u := newUser(t, r)
		// One script: the mounts are in the namespace of these processes.
		out := u.must(`
$K up data --size 1G --rootless --at ~/data
grep -q " $HOME/data fuse" /proc/mounts
mkdir ~/data/sub; echo hello > ~/data/sub/f; head -c 3000000 /dev/urandom > ~/data/big
sha256sum ~/data/big ~/data/sub/f > ~/sums
$K up data --rootless --at ~/data
$K status
$K down data
$K down data
! grep -q " $HOME/" /proc/mounts
$K up data --rootless --at ~/data
sha256sum -c ~/sums
$K down data
mkdir ~/mnt
$K mount ~/mnt
e2fsck -fn ~/mnt/data
$K umount ~/mnt
! grep -q " $HOME/" /proc/mounts`)
		if strings.Count(out, ": OK") != 2 {
			t.Errorf("checksums after down and up:\n%s", out)
		}
		nothingLeft(t, r)
	})
	t.Run("command", func(t *testing.T) {
		r := rig.New(t, 2*time.Minute)
		u := newUser(t, r)
		// PATH without fusermount3 is not enough: kvbfs looks in /bin as well.
		u.must(`mkdir ~/data; $K up data --size 1G --rootless --at ~/data -- sh -ec 'echo hello > ~/data/f; df ~/data; test $(wc -l < /proc/mounts) -gt 0'
test -z "$(ls -A ~/data)"`)
		if out := u.must(`$K up data --rootless --at ~/data -- cat data/f`); out != "hello\n" {
			t.Errorf("what the first command wrote reads %q in the second", out)
		}
		if res := u.do(`$K up data --rootless --at ~/data -- sh -c 'exit 7'`); res.Code != 7 {
			t.Errorf("a command that ends with 7: status %d\n%s", res.Code, res.All())
		}
		if res := u.do(`$K up data --rootless --at ~/data -- sh -c 'kill -9 $$'`); res.Code != 137 {
			t.Errorf("a command that is killed: status %d\n%s", res.Code, res.All())
		}
		nothingLeft(t, r)
	})
	t.Run("without --rootless", func(t *testing.T) {
		r := rig.New(t, time.Minute)
		u := newUser(t, r)
		res := u.do(`exec $K up data --size 1G --at ~/data`)
		if res.Code != 1 && res.Code != 2 || !strings.Contains(res.Stderr, "--rootless") {
			t.Errorf("up without root: status %d\n%s", res.Code, res.All())
		}
		rig.OneLine(t, "up", res.Stderr)
		nothingLeft(t, r)
	})
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
