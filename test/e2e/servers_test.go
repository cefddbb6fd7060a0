//go:build e2e

package e2e

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestServers: one pool over three memcached servers. All of them get their
// share; another order of the same servers is the same pool, other servers are
// refused; and one that comes back empty costs its own blocks, which are EIO and
// never zeros, while the others go on.
func TestServers(t *testing.T) {
	rig.RequireLoop(t)
	r := rig.New(t, 3*time.Minute)
	var servers []*rig.Memcached
	var addrs []string
	for range 4 {
		s := r.MemcachedTCP(256)
		servers, addrs = append(servers, s), append(addrs, s.Addr)
	}
	url := func(order ...int) string {
		var list []string
		for _, i := range order {
			list = append(list, addrs[i])
		}
		return "memcached://" + strings.Join(list, ",") + "/three"
	}
	store := url(0, 1, 2)
	at := r.Mkdir("at")
	r.Kvbfs("up", "disk", "--size", "2G", "--fs", "ext4", "--at", at, "--store", store)
	src := filepath.Join(goroot(t, r), "src", "cmd", "compile")
	r.Run("cp", "-a", src, filepath.Join(at, "tree"))
	want := rig.ReadTree(t, src)
	r.Kvbfs("down", "disk")
	var items [3]int64
	for i := range items {
		items[i] = servers[i].Stat("curr_items")
	}
	t.Logf("items per server: %v", items)
	for i, n := range items {
		if all := items[0] + items[1] + items[2]; n < all/6 {
			t.Errorf("server %d has %d of %d items: the slots are not spread", i, n, all)
		}
	}

	r.Kvbfs("up", "disk", "--at", at, "--store", url(2, 0, 1))
	rig.SameTree(t, want, rig.ReadTree(t, filepath.Join(at, "tree")))
	r.Kvbfs("down", "disk")

	mnt := r.Mkdir("other")
	for what, u := range map[string]string{
		"another server": url(0, 1, 3), "one more server": url(0, 1, 2, 3), "one server less": url(0, 1),
	} {
		res := r.TryKvbfs("mount", mnt, "--store", u)
		if res.Code != 1 {
			t.Errorf("%s: mount: status %d, want 1\n%s", what, res.Code, res.All())
			r.TryKvbfs("umount", mnt)
		}
		rig.OneLine(t, what, res.Stderr)
	}
	if n := servers[3].Stat("curr_items"); n != 0 {
		t.Errorf("the refusals left %d items on a foreign server", n)
	}
	serverLost(t, r, store, servers[1])
}

// serverLost writes a volume, restarts one of its servers empty and reads.
func serverLost(t *testing.T, r *rig.Rig, store string, victim *rig.Memcached) {
	const blocks = 1024 // 32 slots of 32 blocks
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, blocks, 7)
	victim.Kill()
	victim.Start()
	lost, good := 0, 0
	got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range int64(blocks) {
		err := f.ReadAt(got, i*rig.BlockSize)
		switch rig.Stamp(want, i, 7); {
		case err == nil && string(got) == string(want):
			good++
		case errors.Is(err, unix.EIO):
			lost++
		default:
			t.Fatalf("block %d: %v, zeros: %v", i, err, err == nil && string(got) == string(make([]byte, rig.BlockSize)))
		}
	}
	t.Logf("%d blocks on living servers, %d lost", good, lost)
	// Where a unit of 32 blocks is placed follows from the volume's random id: of 32
	// units one server in fifty times has less than six.
	if lost == 0 || good == 0 {
		t.Errorf("%d blocks good and %d lost of %d over three servers of which one was emptied", good, lost, blocks)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush after one of three servers was emptied: %v, want EIO", err)
	}
	f.Close()
	m.Kill()
	res := r.TryKvbfs("mount", m.Dir, "--store", store)
	if res.Code != 1 {
		t.Errorf("mounting with an emptied server: status %d, want 1\n%s", res.Code, res.All())
	}
	rig.OneLine(t, "mount", res.Stderr)
}

// TestOtherMachine: a daemon that shares nothing with the holder but the store, as
// on another machine, may not write to the volume while the holder lives, and may
// once the holder is unmounted.
func TestOtherMachine(t *testing.T) {
	mostlyWaits(t)
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	store := r.Memcached(128).URL()
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 16, 1)

	dir, state, run := r.Mkdir("theirs"), r.Mkdir("their-state"), r.Mkdir("their-run")
	env := []string{"KVBFS_STATE_DIR=" + state, "KVBFS_RUNTIME_DIR=" + run}
	r.Must(rig.Cmd{Args: append([]string{r.Bin}, r.MountArgs(dir, "--store", store)...), Env: env})
	write := rig.Cmd{Args: []string{"dd", "if=/dev/urandom", "of=" + filepath.Join(dir, "v"), "bs=4k", "count=1", "conv=notrunc", "status=none"}}
	if res := r.Do(write); res.Code == 0 {
		t.Error("a second machine writes to a volume that is held")
	} else if !strings.Contains(res.Stderr, "busy") {
		t.Errorf("writing to what another machine holds: %s", res.Stderr)
	}
	got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	rig.Stamp(want, 0, 1)
	if err := f.ReadAt(got, 0); err != nil || string(got) != string(want) {
		t.Errorf("the holder's block after that: %v", err)
	}
	f.Close()
	m.Umount()
	rig.Eventually(t, 30*time.Second, "the other machine may write", func() bool { return r.Do(write).Code == 0 })
	r.Must(rig.Cmd{Args: []string{r.Bin, "umount", dir}, Env: env})
}

// TestTwoDaemons: two mounts on one machine, of two stores with volumes of the
// same name, and of one store. What is open for writing in one is refused in the
// other, and neither disturbs the other.
func TestTwoDaemons(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	mc := r.Memcached(128).URL()
	for _, store := range []string{r.FileStore(), mc} {
		r.Create(store, "same", "16M")
	}
	a, b := r.Mount(r.FileStore()), r.Mount(mc)
	fa, fb := rig.Direct(t, a.Image("same")), rig.Direct(t, b.Image("same"))
	fill(t, fa, 16, 1)
	fill(t, fb, 16, 2)
	if out := r.Kvbfs("status"); !strings.Contains(out, a.Dir) || !strings.Contains(out, b.Dir) {
		t.Errorf("status does not name both mounts:\n%s", out)
	}
	got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	holds := func(f *rig.File, version uint64) {
		t.Helper()
		if err := f.ReadAt(got, 5*rig.BlockSize); err != nil {
			t.Fatal(err)
		}
		if rig.Stamp(want, 5, version); string(got) != string(want) {
			t.Errorf("a block is not of version %d", version)
		}
	}
	holds(fa, 1)
	holds(fb, 2)

	// The same store in a second daemon.
	c := r.Mount(mc)
	if f, err := rig.OpenDirect(c.Image("same")); err == nil {
		err = f.WriteAt(got, 0)
		f.Close()
		if err == nil {
			t.Error("two daemons write to one volume")
		}
	} else if !errors.Is(err, unix.EBUSY) {
		t.Errorf("opening what another daemon writes to: %v, want EBUSY", err)
	}
	// The end of one is not felt by the others.
	a.KillOnly()
	r.Try("umount", "-l", a.Dir)
	fa.Close()
	holds(fb, 2)
	fb.Close()
	b.Umount()
	f := rig.Direct(t, c.Image("same"))
	holds(f, 2)
	fill(t, f, 16, 3)
	holds(f, 3)
	f.Close()
	c.Umount()
}
