//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/kvstore/memcached/memcachedtest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// TestSecured: a volume on a memcached that wants TLS, a client certificate and a
// password. The secrets are in no command line, log, status or stack trace; the
// mount belongs to its owner alone, and what lies beside it too.
func TestSecured(t *testing.T) {
	rig.RequireFUSE(t)
	const password = "s3cret-pa55word"
	certs := memcachedtest.NewCerts(t)
	auth := filepath.Join(t.TempDir(), "auth")
	if err := os.WriteFile(auth, []byte("alice:"+password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := memcachedtest.Start(t, memcachedtest.TCP(), memcachedtest.TLS(certs), memcachedtest.Args("-Y", auth))
	r := rig.New(t, 2*time.Minute)
	store := "memcached+tls://" + srv.Addr()

	r.Setenv("KVBFS_TLS_CA", certs.CA)
	r.Setenv("KVBFS_TLS_CERT", certs.ClientCert)
	r.Setenv("KVBFS_TLS_KEY", certs.ClientKey)
	said := []string{}
	try := func(args ...string) rig.Result {
		res := r.TryKvbfs(args...)
		said = append(said, res.All())
		return res
	}
	res := try("volume", "ls", "--store", store)
	if res.Code != 1 || !strings.Contains(res.Stderr, "KVBFS_MEMCACHED_AUTH_FILE") {
		t.Errorf("without the password: status %d, %s", res.Code, res.All())
	}
	if res := try("volume", "ls", "--store", "memcached://alice:"+password+"@"+srv.Addr()); res.Code != 2 {
		t.Errorf("with the password in the URL: status %d, %s", res.Code, res.All())
	}
	r.Setenv("KVBFS_MEMCACHED_AUTH", "alice:"+password)
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 256, 1)
	got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for block := range int64(256) {
		rig.Stamp(want, block, 1)
		if err := f.ReadAt(got, block*rig.BlockSize); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d: %v, equal %v", block, err, bytes.Equal(got, want))
		}
	}
	try("status", "--json")
	try("status")
	try("doctor", store)
	try("volume", "info", "v", "--store", store, "--json")
	try("volume", "where", "v", "0", "--store", store)
	private(t, r, m)

	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.PID()))
	if err != nil || len(cmdline) == 0 {
		t.Fatalf("the daemon's command line: %q, %v", cmdline, err)
	}
	said = append(said, string(cmdline))
	f.Close()
	// The runtime's own dump of all goroutines, as in a panic.
	logs := func() (text string, files int) {
		names, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*"))
		for _, name := range names {
			b, _ := os.ReadFile(name)
			text += string(b)
		}
		return text, len(names)
	}
	if err := syscall.Kill(m.PID(), syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, 30*time.Second, "the daemon ends", func() bool { return !rig.Alive(m.PID()) })
	text, files := logs()
	if files == 0 || !strings.Contains(text, "goroutine ") {
		t.Errorf("no stack trace in the daemon's log (%d files): %q", files, text)
	}
	key, err := os.ReadFile(certs.ClientKey)
	if err != nil {
		t.Fatal(err)
	}
	keyLine := strings.Split(string(key), "\n")[1]
	for _, s := range append(said, text) {
		if strings.Contains(s, password) || strings.Contains(s, keyLine) {
			t.Errorf("a secret is shown:\n%s", s)
		}
	}
	syscall.Unmount(m.Dir, syscall.MNT_DETACH)
	for _, name := range []string{"*.log", "*.json"} { // the sweep would call the trace a crash
		old, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", name))
		for _, f := range old {
			os.Remove(f)
		}
	}
}

// private checks that nobody but the owner gets in: the mount, the image, and the
// directories and sockets beside it.
func private(t *testing.T, r *rig.Rig, m *rig.Mount) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+m.Dir+" ") {
			found = true
			options := strings.Fields(line)
			if !strings.Contains(options[5], "nosuid") || !strings.Contains(options[5], "nodev") || strings.Contains(line, "allow_other") {
				t.Errorf("mount options: %s", line)
			}
		}
	}
	if !found {
		t.Errorf("%s is not in mountinfo", m.Dir)
	}
	fi, err := os.Stat(m.Image("v"))
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("the image: %v, %v; want mode 0600", fi, err)
	}
	if os.Geteuid() == 0 {
		res := r.Do(rig.Cmd{Args: []string{"setpriv", "--reuid=65534", "--clear-groups", "ls", m.Dir}, Limit: 20 * time.Second})
		if res.Code == 0 {
			t.Errorf("another user reads the mount: %s", res.All())
		}
	}
	for _, top := range []string{r.RuntimeDir(), r.StateDir()} {
		err := filepath.Walk(top, func(path string, fi os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			if fi.Mode().Perm()&0o077 != 0 && fi.IsDir() || fi.Mode().Perm()&0o022 != 0 {
				t.Errorf("%s has mode %v: others get in", path, fi.Mode())
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestUpIsNoSUID: the file system that up mounts honours no set-user-id program and
// no device file: the image may come from anybody.
func TestUpIsNoSUID(t *testing.T) {
	rig.RequireLoop(t)
	r := rig.New(t, 3*time.Minute)
	at := r.Mkdir("data")
	r.Kvbfs("up", "v", "--size", "64M", "--fs", "ext4", "--at", at, "--store", r.FileStore())
	line := r.Run("findmnt", "-n", "-o", "OPTIONS", at)
	if !strings.Contains(line, "nosuid") || !strings.Contains(line, "nodev") {
		t.Errorf("options of %s: %s", at, line)
	}
	r.Kvbfs("down", "v")
}
