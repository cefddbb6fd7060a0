//go:build e2e

package e2e

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// TestRedisCluster works on ext4 and XFS with real files and fio's checksums while a
// master is added and slots move to it, which nobody may notice, and while a master
// is killed: I/O pauses and goes on, and what was synced is there.
func TestRedisCluster(t *testing.T) {
	rig.RequireLoop(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+fs)
			r := rig.New(t, 5*time.Minute)
			c := redistest.Cluster(t, 3, 1, redistest.MemoryMB(512))
			c.NoFailover()
			r.Create(c.URL(), "disk", "512M")
			w := &onCluster{r: r, c: c, m: r.Mount(c.URL(), "--wait-replicas=1"), fs: fs, src: goroot(t, r) + "/src/net"}
			w.dev = w.m.Attach("disk")
			r.Mkfs(fs, w.dev)
			w.dir = r.MountFS(w.dev, fs)
			w.copyTo("before")
			underVerify(t, r, w.dir+"/verify", 3*time.Second, func() {
				added := c.AddMaster(1)
				c.Move(c.Servers[0], added, 0, 50)
				w.copyTo("reshard")
				if added.Do("DBSIZE").(int64) == 0 {
					t.Error("the new master got no keys: not much of a test")
				}
			})
			w.failover(t)
			w.end(t)
		})
	}
}

// onCluster is the world of TestRedisCluster.
type onCluster struct {
	r            *rig.Rig
	c            *redistest.ClusterNodes
	m            *rig.Mount
	fs, dev, dir string
	src          string
	trees        []string // that were synced
}

// copyTo copies a tree and syncs it.
func (w *onCluster) copyTo(name string) {
	w.r.T.Helper()
	w.r.Run("sh", "-ec", `cp -a "$0" "$1" && sync -f "$1"`, w.src, w.dir+"/"+name)
	w.trees = append(w.trees, name)
}

// failover kills a master under load. What the master acknowledged in its last
// moment and had not sent to its replica is lost: Redis promises no more. It takes
// luck to see it; then kvbfs must have said so, errors are allowed, and what was
// synced must be there all the same.
func (w *onCluster) failover(t *testing.T) {
	t.Helper()
	r := w.r
	verify := make(chan rig.Result, 1)
	go func() {
		verify <- r.Do(rig.Cmd{Limit: 3 * time.Minute, Dir: r.Dir, Args: []string{"fio", "--name=verify", "--filename=" + w.dir + "/verify2",
			"--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1", "--size=64m", "--norandommap", "--time_based",
			"--runtime=6", "--verify=crc32c", "--verify_backlog=512", "--verify_fatal=1", "--minimal"}})
	}()
	cp := r.Start(rig.Cmd{Args: []string{"sh", "-ec", `cp -a "$0" "$1" && sync -f "$1"`, w.src, w.dir + "/during"}})
	time.Sleep(time.Second) // they have begun
	dead := w.c.Servers[1]
	masters := len(w.c.Masters())
	w.c.Failover()
	dead.Stop()
	rig.Eventually(t, 60*time.Second, "a replica took over", func() bool { return len(w.c.Masters()) == masters })
	w.c.NoFailover() // a second time
	dead.Restart()   // as a replica, for which flushes wait
	copied, res := cp.Wait(), <-verify
	if logged(t, r, "went back in time") > 0 {
		t.Logf("the replica that took over had not got the last writes; it was found (cp: %v, fio: %d)", copied, res.Code)
		return
	}
	if copied != nil {
		t.Errorf("cp and sync over the death of a master: %v", copied)
	} else {
		w.trees = append(w.trees, "during")
	}
	if res.Code != 0 {
		t.Errorf("fio over the death of a master: status %d\n%s", res.Code, res.All())
	}
}

// end takes all down, and looks at the trees as a new mount has them.
func (w *onCluster) end(t *testing.T) {
	t.Helper()
	r := w.r
	wentBack := logged(t, r, "went back in time") > 0
	rig.Eventually(t, time.Minute, "status says the durability, and that all answer", func() bool {
		out := r.Kvbfs("status")
		return strings.Contains(out, "durability  server") && !strings.Contains(out, "NO ANSWER")
	})
	if wentBack { // flushes fail for good: a new mount, and the journal's replay
		r.Try("umount", "-l", w.dir)
		w.m.Kill()
		r.Try("losetup", "-d", w.dev)
		rig.Eventually(t, 30*time.Second, "the device is gone", func() bool { return len(r.Loops()) == 0 })
	} else {
		r.UmountFS(w.dir)
		r.Detach(w.dev)
		w.m.Umount()
	}
	w.m.Mount(w.c.URL(), "--wait-replicas=1")
	w.dev = w.m.Attach("disk")
	var opts []string
	if wentBack && w.fs == "xfs" {
		opts = []string{"nouuid"} // the dead one may not be gone yet
	}
	w.dir = r.MountFS(w.dev, w.fs, opts...)
	want := rig.ReadTree(t, w.src)
	for _, name := range w.trees {
		rig.SameTree(t, want, rig.ReadTree(t, w.dir+"/"+name))
	}
	r.UmountFS(w.dir)
	if !wentBack {
		r.Fsck(w.fs, w.dev)
	}
	r.Detach(w.dev)
	w.m.Umount()
}

// TestClusterBehind: a replica takes over that missed the last seconds of writes.
func TestClusterBehind(t *testing.T) {
	rig.RequireFUSE(t)
	c := redistest.Cluster(t, 3, 1, redistest.MemoryMB(512))
	c.NoFailover()
	var failover sync.Once
	// 96 MiB: a third of it is far more than sockets hold on their way to a replica.
	behind(t, c.URL(), 24<<10, c.Servers[0], c.Servers[3], func() bool {
		failover.Do(c.Failover)
		return len(c.Masters()) == 3
	})
}

// behind fills blocks and stops the replica of a master for a while, in which they are
// written again, and others for the first time; then the master dies. What was flushed and
// replicated before is there; every other block is EIO or an earlier value of its own; it
// is said in the log, and no flush succeeds any more.
func behind(t *testing.T, url string, blocks int64, master, replica *redistest.Server, takenOver func() bool) {
	const (
		fresh = 2 << 10 // written for the first time while the replica misses them
		run   = 256     // in one request
	)
	r := rig.New(t, 4*time.Minute)
	r.Create(url, "v", "128M")
	m := r.Mount(url)
	f := rig.Direct(t, m.Image("v"))
	store := func(from, to int64, version uint64) {
		t.Helper()
		buf := rig.Aligned(run * rig.BlockSize)
		for b := from; b < to; b += run {
			for i := range int64(run) {
				rig.Stamp(buf[i*rig.BlockSize:(i+1)*rig.BlockSize], b+i, version)
			}
			must(t, f.WriteAt(buf, b*rig.BlockSize))
		}
	}
	store(0, blocks, 1)
	must(t, f.Sync())
	master.Replicated()
	replica.Pause()
	store(0, blocks, 2)
	store(blocks, blocks+fresh, 2)
	master.Stop()
	replica.Resume()
	rig.Eventually(t, 60*time.Second, "the replica took over", takenOver)

	many, want := rig.Aligned(run*rig.BlockSize), make([]byte, rig.BlockSize)
	count := map[string]int{}
	for i := range blocks + fresh {
		buf := many[i%run*rig.BlockSize:][:rig.BlockSize]
		if i < blocks && i%run == 0 {
			must(t, f.ReadAt(many, i*rig.BlockSize))
		}
		if i >= blocks {
			if err := f.ReadAt(buf, i*rig.BlockSize); errors.Is(err, unix.EIO) {
				count["EIO"]++
				continue
			} else if err != nil {
				t.Fatalf("block %d: %v", i, err)
			}
		}
		if rig.Stamp(want, i, 2); string(buf) == string(want) {
			count["newest"]++
			continue
		}
		if rig.Stamp(want, i, 1); string(buf) != string(want) || i >= blocks {
			t.Fatalf("block %d is none that was ever acknowledged", i)
		}
		count["earlier"]++
	}
	t.Logf("after the failover: %v", count)
	if count["EIO"] == 0 || count["earlier"] == 0 {
		t.Error("nothing was lost: not much of a test")
	}
	for range 2 {
		if err := f.Sync(); !errors.Is(err, unix.EIO) {
			t.Errorf("a flush after a failover that went back: %v, want EIO", err)
		}
	}
	if logged(t, r, "went back in time", "lacks the newest content") != 1 {
		t.Error("the log does not say once that the server went back")
	}
	if out := r.Kvbfs("status"); !strings.Contains(out, "went back in time") {
		t.Errorf("status does not say that a server went back in time:\n%s", out)
	}
	f.Close()
	m.Kill()
}
