//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// long is how long a fault lasts: short in `make e2e`, as long as the fault matrix
// asks for in `make soak`, which sets KVBFS_E2E_LONG.
func long(short, soak time.Duration) time.Duration {
	if os.Getenv("KVBFS_E2E_LONG") != "" {
		return soak
	}
	return short
}

// underVerify runs fio's verifying job on a file while a fault comes and goes; fio
// must not see an error. fault is called once fio has begun.
func underVerify(t *testing.T, r *rig.Rig, target string, lasts time.Duration, fault func()) {
	t.Helper()
	if res := verifying(t, r, target, lasts, fault); res.Code != 0 {
		t.Errorf("fio: status %d\n%s", res.Code, res.All())
	}
}

// verifying is underVerify for a fault that may cost something: it returns how fio ended.
func verifying(t *testing.T, r *rig.Rig, target string, lasts time.Duration, fault func()) rig.Result {
	t.Helper()
	rig.Require(t, "fio")
	// On a loaded machine fio begins after the fault did. Opening a volume gives EIO while
	// its server does not answer; a volume that is open already is not asked for again.
	held, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer held.Close()
	done := make(chan rig.Result, 1)
	runtime := int(lasts/time.Second) + 4
	go func() {
		done <- r.Do(rig.Cmd{Limit: lasts + 3*time.Minute, Dir: r.Dir, Args: []string{"fio", "--name=verify", "--filename=" + target,
			"--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1", "--size=64m", "--norandommap", "--time_based",
			fmt.Sprintf("--runtime=%d", runtime), "--verify=crc32c", "--verify_backlog=512", "--verify_fatal=1", "--minimal",
			fmt.Sprintf("--randseed=%d", rig.Seed(t)>>1)}})
	}()
	select {
	case res := <-done:
		t.Fatalf("fio ended before the fault: status %d\n%s", res.Code, res.All())
	case <-time.After(time.Second):
	}
	fault()
	return <-done
}

// firstAnswer returns when a read of the first block is answered.
func firstAnswer(t *testing.T, f *rig.File) time.Time {
	t.Helper()
	if err := f.ReadAt(rig.Aligned(rig.BlockSize), 0); err != nil {
		t.Errorf("the first read after the fault: %v", err)
	}
	return time.Now()
}

// TestStoppedDaemon: a daemon that is stopped for a while stalls its users, who see
// no error.
func TestStoppedDaemon(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, long(0, 30*time.Second)+3*time.Minute)
	stoppedDaemon(t, r, r.MemcachedTCP(256).Engine(), "v")
}

func stoppedDaemon(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	lasts := stall(e, 3*time.Second, 30*time.Second)
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 16, 1)
	underVerify(t, r, m.Image(v), lasts, func() {
		rig.Stop(t, m.PID())
		if out := r.Kvbfs("status"); !strings.Contains(out, "NOT ANSWERING") {
			t.Errorf("status of a stopped daemon:\n%s", out)
		}
		time.Sleep(lasts)
		begin := time.Now()
		must(t, syscall.Kill(m.PID(), syscall.SIGCONT))
		t.Logf("stopped for %v; answered %v after it went on", lasts, firstAnswer(t, f).Sub(begin).Round(time.Millisecond))
	})
	f.Close()
	m.Umount()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestStoppedServer: a server that is stopped for a while stalls its users, who see
// no error; status names the requests that wait and what for; and a process that
// starts others and closes the image does not wait with them.
func TestStoppedServer(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, long(0, time.Minute)+3*time.Minute)
	stoppedServer(t, r, r.MemcachedTCP(256).Engine(), "v")
}

func stoppedServer(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	lasts := stall(e, 5*time.Second, time.Minute)
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 16, 1)
	underVerify(t, r, m.Image(v), lasts, func() {
		e.Stop()
		end := time.Now().Add(lasts)
		out := ""
		for !waitsFor(out, e) {
			if out = r.Kvbfs("status"); time.Since(end) > 30*time.Second {
				t.Errorf("status does not name what is waited for:\n%s", out)
				break
			}
		}
		r.Must(rig.Cmd{Args: []string{"sh", "-ec", `exec 3<"$0"; /bin/true; exec 3<&-`, m.Image(v)}, Limit: 30 * time.Second})
		time.Sleep(time.Until(end))
		begin := time.Now()
		e.Continue()
		t.Logf("stopped for %v; answered %v after it went on", lasts, firstAnswer(t, f).Sub(begin).Round(time.Millisecond))
	})
	f.Close()
	m.Umount()
}

// TestOtherServersGoOn: while one of two servers is stopped and many requests wait
// for it, blocks of the other one are read and written as if nothing were.
func TestOtherServersGoOn(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 5*time.Minute)
	servers := byLeases(r.MemcachedTCP(128), r.MemcachedTCP(128))
	b, a := servers[0], servers[1]
	store := "memcached://" + a.Addr + "," + b.Addr
	r.Create(store, "v", "64M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	const blocks = 2048
	fill(t, f, blocks, 1)
	var onA, onB []int64
	for i := int64(0); i < blocks; i += 32 {
		if r.Where(store, "v", i*rig.BlockSize).Server == a.Addr {
			onA = append(onA, i)
		} else {
			onB = append(onB, i)
		}
	}
	if len(onA) < 8 || len(onB) < 8 {
		t.Fatalf("%d and %d units of 64: the slots are not spread", len(onA), len(onB))
	}
	a.Stop()
	var stuck sync.WaitGroup
	errs := make(chan error, 64)
	for i := range 32 {
		stuck.Go(func() {
			buf := rig.Aligned(rig.BlockSize)
			at := onA[i%len(onA)] + int64(i)%32
			if i%2 == 0 {
				errs <- f.ReadAt(buf, at*rig.BlockSize)
				return
			}
			rig.Stamp(buf, at, 1)
			if err := f.WriteAt(buf, at*rig.BlockSize); err != nil || !r.Defers() { // else it does not wait
				errs <- err
			}
		})
	}
	healthy := make(chan error, 1)
	begin := time.Now()
	var slowest time.Duration
	go func() {
		buf := rig.Aligned(rig.BlockSize)
		for i := range int64(1000) {
			at := onB[i%int64(len(onB))] + i%32
			one := time.Now()
			err := f.ReadAt(buf, at*rig.BlockSize)
			if err == nil && i%4 == 0 {
				rig.Stamp(buf, at, 1)
				err = f.WriteAt(buf, at*rig.BlockSize)
			}
			if err != nil {
				healthy <- fmt.Errorf("block %d: %w", at, err)
				return
			}
			slowest = max(slowest, time.Since(one))
		}
		healthy <- nil
	}()
	select {
	case err := <-healthy:
		if err != nil {
			t.Error(err)
		}
		t.Logf("1000 blocks of the other server in %v, the slowest in %v", time.Since(begin).Round(time.Millisecond), slowest.Round(time.Microsecond))
	case <-time.After(2 * time.Minute):
		t.Error("blocks of a server that answers wait for one that does not")
	}
	if len(errs) != 0 {
		t.Errorf("a request of the stopped server ended: %v", <-errs)
	}
	a.Continue()
	stuck.Wait()
	for range len(errs) {
		if err := <-errs; err != nil {
			t.Errorf("a request that waited: %v", err)
		}
	}
	f.Close()
	m.Umount()
}

// TestIOTimeoutInTime: with --io-timeout=5s a silent server gives EIO after five
// seconds, and not much later.
func TestIOTimeoutInTime(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	ioTimeoutInTime(t, r, r.MemcachedTCP(128).Engine(), "v")
}

func ioTimeoutInTime(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	// Longer than a machine stalls, which is no fault of the fill.
	limit := max(3*time.Second, stall(e, 5*time.Second, 5*time.Second))
	r.Create(e.URL(), v, "16M")
	m := r.Mount(e.URL(), "--io-timeout="+limit.String())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 16, 1)
	e.Stop()
	// The flush comes before the write: with write-back that one goes through, since the
	// flush failed.
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"read", func() error { return f.ReadAt(rig.Aligned(rig.BlockSize), 0) }},
		{"fsync", f.Sync},
		{"write", func() error {
			buf := rig.Aligned(rig.BlockSize)
			rig.Stamp(buf, 1, 2)
			return f.WriteAt(buf, rig.BlockSize)
		}},
	} {
		begin := time.Now()
		done := make(chan error, 1)
		go func() { done <- c.do() }()
		select {
		case err := <-done:
			took := time.Since(begin)
			if !errors.Is(err, unix.EIO) || took < limit-limit/5 {
				t.Errorf("%s: %v after %v, want EIO after %v", c.what, err, took, limit)
			}
			t.Logf("%s: EIO after %v", c.what, took.Round(time.Millisecond))
		case <-time.After(45 * time.Second):
			t.Fatalf("%s still waits", c.what)
		}
	}
	e.Continue()
	f.Close()
	m.Umount()
}

// TestRefusedAndMute: a server that refuses connections for a while, and one whose
// old connections are dead though new ones work, are waited for and dialled anew;
// no descriptor is left behind.
func TestRefusedAndMute(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*long(0, 2*time.Minute)+4*time.Minute)
	refusedAndMute(t, r, r.MemcachedTCP(256).Engine(), "v")
}

func refusedAndMute(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	lasts := stall(e, 3*time.Second, 2*time.Minute)
	wire := e.Wire(t)
	r.Create(wire.URL, v, "64M")
	m := r.Mount(wire.URL)
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 16, 1)
	files := func() int { return len(descriptors(t, m.PID())) }
	before := 0
	for i, fault := range []struct {
		name string
		do   func()
	}{
		{"refused", func() {
			wire.Refuse()
			time.Sleep(lasts)
			must(t, wire.Accept())
		}},
		{"mute", func() { wire.Mute() }},
		{"refused again", func() {
			wire.Refuse()
			time.Sleep(time.Second)
			must(t, wire.Accept())
		}},
	} {
		underVerify(t, r, m.Image(v), lasts, func() {
			fault.do()
			begin := time.Now()
			t.Logf("%s: answered after %v", fault.name, firstAnswer(t, f).Sub(begin).Round(time.Millisecond))
		})
		if i == 0 {
			before = files()
		}
	}
	// Workers that waited apart are kept for the next time, with their connections, one
	// per node that they met; so are the channels of write-back, one per server.
	spare := 20 * len(e.Servers())
	if r.Defers() {
		spare += 16
	}
	if after := files(); after > before+spare {
		t.Errorf("%d descriptors after the first fault, %d after three", before, after)
	} else {
		t.Logf("%d descriptors after the first fault, %d after three", before, after)
	}
	f.Close()
	m.Umount()
}

func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("process %d has no descriptors: %v", pid, err)
	}
	return fds
}

// TestConnectionLimit: a server that takes fewer connections than the mount would
// like serves it all the same.
func TestConnectionLimit(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*time.Minute)
	srv := r.MemcachedTCP(256, "-c", "36") // of which it needs some twenty itself
	r.Create(srv.URL(), "v", "64M")
	m := r.Mount(srv.URL())
	underVerify(t, r, m.Image("v"), time.Second, func() {})
	m.Umount()
}

// TestFewFiles: with few open files allowed the mount works, through an outage too;
// with too few it says how many it needs.
func TestFewFiles(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "prlimit")
	r := rig.New(t, 3*time.Minute)
	srv := r.Memcached(256)
	r.Create(srv.URL(), "v", "64M")
	dir := r.Mkdir("few")
	limited := func(n int) rig.Result {
		files := strconv.Itoa(n)
		return r.Do(rig.Cmd{Args: append([]string{"setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=" + files + ":" + files, r.Bin},
			r.MountArgs(dir, "--store", srv.URL())...)})
	}
	if res := limited(44); res.Code != 1 || !strings.Contains(res.Stderr, "ulimit -n") {
		t.Errorf("with 44 open files: status %d\n%s", res.Code, res.All())
	} else {
		rig.OneLine(t, "mount", res.Stderr)
	}
	res := limited(64)
	if res.Code != 0 || !strings.Contains(res.All(), "only 64 open files") {
		t.Fatalf("with 64 open files: status %d\n%s", res.Code, res.All())
	}
	image := filepath.Join(dir, "v")
	underVerify(t, r, image, 2*time.Second, func() {
		srv.Stop()
		time.Sleep(2 * time.Second)
		srv.Continue()
	})
	r.Kvbfs("umount", dir)
}
