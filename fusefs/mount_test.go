package fusefs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/internal/fusetest"
	"github.com/kvbfs/kvbfs/kvstore/mem"
	"github.com/kvbfs/kvbfs/kvstore/pool"
	"github.com/kvbfs/kvbfs/kvstore/volume"
)

// The process that serves a mount must not touch it, so what a test does to its
// mount runs in a child: this binary again, with the scenario's name in childEnv
// (scenarios_test.go).
const childEnv = "KVBFS_FUSEFS_TEST_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		os.Exit(runScenario(name, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// rig is a mount over a store in memory.
type rig struct {
	*Server
	t     *testing.T
	dir   string
	vols  *volume.Set
	store *gatedStore
	logs  *logs
	lost  error // what Close has to say in the end; nil: nothing
}

type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format+"\n", args...)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const testVolume, testSize = "disk", 8 << 20

// newRig mounts a pool with one volume of 8 MiB.
func newRig(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	needFUSE(t)
	ctx := context.Background()
	r := &rig{t: t, logs: &logs{}, store: &gatedStore{Store: mem.New(mem.Config{})}}
	run := t.TempDir()
	p, err := pool.Open(ctx, r.store, pool.Options{URL: "mem:", StateDir: t.TempDir(), RuntimeDir: run})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	r.vols = volume.New(p, r.store, volume.Options{RuntimeDir: run, Log: r.logs.printf})
	if err := r.vols.Create(ctx, testVolume, testSize); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := r.vols.Close(ctx); err != nil {
			t.Errorf("closing the volumes: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.logs)
		}
	})
	r.mount(change)
	return r
}

// mount serves the volumes of r on a new directory.
func (r *rig) mount(change func(*Options)) {
	r.t.Helper()
	opt := Options{Dir: filepath.Join(r.t.TempDir(), "mnt"), Name: "mem:", Log: r.logs.printf, Usage: r.store.Usage}
	if err := os.Mkdir(opt.Dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	opt.Transport = testTransport
	if change != nil {
		change(&opt)
	}
	unlock := func() {}
	if opt.Transport != TransportDev {
		unlock = fusetest.LockRings(r.t)
	}
	srv, err := Mount(context.Background(), r.vols, opt)
	unlock()
	if err != nil {
		r.t.Fatal(err)
	}
	r.Server, r.dir = srv, srv.dir
	r.t.Cleanup(func() {
		r.store.open() // nothing may be held up any more
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := srv.Unmount(true); err != nil {
			r.t.Errorf("unmount: %v", err)
			_ = unix.Unmount(srv.dir, unix.MNT_DETACH)
			_ = srv.conn.abort()
		}
		if err := srv.Close(ctx); !errors.Is(err, r.lost) {
			r.t.Errorf("close: %v, want %v", err, r.lost)
		}
	})
}

func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	f.Close()
}

// child runs a scenario on the mount to its end and returns what it printed.
func (r *rig) child(scenario string, args ...string) string {
	r.t.Helper()
	out, err := r.start(scenario, args...).finish()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", scenario, err, out)
	}
	return out
}

// running is a scenario under way. It goes on past its "ready" line when finish
// closes its standard input.
type running struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *syncBuffer
	cancel context.CancelFunc
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (r *rig) start(scenario string, args ...string) *running {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, os.Args[0], append([]string{r.dir}, args...)...)
	cmd.Env = append(os.Environ(), childEnv+"="+scenario)
	cmd.WaitDelay = 5 * time.Second
	c := &running{cmd: cmd, out: &syncBuffer{}, cancel: cancel}
	cmd.Stdout, cmd.Stderr = c.out, c.out
	var err error
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cancel(); _ = cmd.Process.Kill() })
	return c
}

// startRead starts a scenario that reads, and shuts the store once it has opened
// the file, so that it is the reading that gets stuck.
func (r *rig) startRead(scenario string) *running {
	r.t.Helper()
	c := r.start(scenario, testVolume, "wait")
	r.ready(c)
	r.store.shut()
	if _, err := c.stdin.Write([]byte("g")); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) ready(c *running) {
	r.t.Helper()
	waitFor(r.t, "child is ready", func() bool { return strings.Contains(c.out.String(), "ready\n") })
}

func (c *running) finish() (string, error) {
	defer c.cancel()
	c.stdin.Close()
	err := c.cmd.Wait()
	return c.out.String(), err
}

func TestCreateByTruncate(t *testing.T) {
	r := newRig(t, nil)
	r.child("create")
	info, err := r.vols.Info(context.Background(), "made")
	if err != nil || info.Size != 3*testSize {
		t.Errorf("volume made by truncate: %+v, %v", info, err)
	}
	for _, want := range []string{"multiple of 4096", "no size yet", "created without a size", "not made smaller"} {
		if !strings.Contains(r.logs.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
}

func TestReadWrite(t *testing.T)  { newRig(t, nil).child("io") }
func TestFallocate(t *testing.T)  { newRig(t, nil).child("fallocate") }
func TestLseek(t *testing.T)      { newRig(t, nil).child("lseek") }
func TestAttributes(t *testing.T) { newRig(t, nil).child("attributes") }

func TestNames(t *testing.T) {
	r := newRig(t, nil)
	if err := r.vols.Create(context.Background(), "other-1", testSize); err != nil {
		t.Fatal(err)
	}
	r.child("names")
	if !strings.Contains(r.logs.String(), "kvbfs volume rm disk") {
		t.Errorf("the log does not say how to remove a volume:\n%s", r.logs)
	}
}

func TestOnly(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Only = []string{"other"} })
	r.child("only")
}

func TestReadOnly(t *testing.T) {
	newRig(t, func(o *Options) { o.ReadOnly = true }).child("readonly")
}

func TestRemove(t *testing.T) {
	r := newRig(t, func(o *Options) { o.AllowRemove = true })
	c := r.start("hold", testVolume, "rw")
	r.ready(c)
	r.child("expect", "unlink", testVolume, "EBUSY")
	if out, err := c.finish(); err != nil {
		t.Fatal(err, out)
	}
	waitFor(t, "the volume is closed", func() bool {
		i, err := r.vols.Info(context.Background(), testVolume)
		return err == nil && !i.Open
	})
	r.child("expect", "unlink", testVolume, "")
	if _, err := r.vols.Info(context.Background(), testVolume); !errors.Is(err, pool.ErrNoVolume) {
		t.Errorf("after rm: %v", err)
	}
}

func TestStatsFile(t *testing.T) {
	r := newRig(t, nil)
	r.child("io")
	var st report
	if err := json.Unmarshal([]byte(r.child("cat", statsName)), &st); err != nil {
		t.Fatal(err)
	}
	if st.Batches == 0 || st.Operations["read"].Requests == 0 || st.Operations["write"].Bytes == 0 || len(st.Operations["read"].Sizes) == 0 {
		t.Errorf("stats: %+v", st)
	}
	r.child("expect", "write", statsName, "EACCES")
}

// A panic in a handler fails that request only.
func TestPanicInHandler(t *testing.T) {
	first := true
	r := newRig(t, func(o *Options) {
		o.Stats = func() []byte {
			if first {
				first = false
				panic("planted")
			}
			return []byte("fine")
		}
	})
	r.child("expect", "read", statsName, "EIO")
	if out := r.child("cat", statsName); out != "fine" {
		t.Errorf("after the panic: %q", out)
	}
	r.store.plant()
	r.child("expect", "write", testVolume, "EIO")
	r.child("expect", "stat", testVolume, "")
	if n := strings.Count(r.logs.String(), "planted"); n < 2 {
		t.Errorf("panics are not in the log:\n%s", r.logs)
	}
}

func TestUnmountBusy(t *testing.T) {
	r := newRig(t, nil)
	c := r.start("hold", testVolume, "rw")
	r.ready(c)
	st := r.Status()
	if len(st.Opened) != 1 || st.Opened[0].Volume != testVolume || !st.Opened[0].Write || !slices.Contains(st.Opened[0].PIDs, c.cmd.Process.Pid) {
		t.Errorf("opened: %+v", st.Opened)
	}
	err := r.Unmount(false)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d, has open %s/%s", c.cmd.Process.Pid, r.dir, testVolume)) {
		t.Errorf("unmount in use: %v", err)
	}
	if out, err := c.finish(); err != nil {
		t.Fatalf("the user of the busy mount: %v\n%s", err, out)
	}
	if err := r.Unmount(false); err != nil {
		t.Fatal(err)
	}
	r.Wait()
	if err := r.Unmount(false); err != nil {
		t.Errorf("unmount twice: %v", err)
	}
	if err := r.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if i, err := r.vols.Info(context.Background(), testVolume); err != nil || i.Open {
		t.Errorf("after Close the volume is still open: %+v, %v", i, err)
	}
}

// One large asynchronous read, as a loop device sends it, is in flight as many
// requests at once: CAP_ASYNC_DIO, MaxBackground and the flags of OPEN at work.
func TestParallel(t *testing.T) {
	r := newRig(t, nil)
	r.child("fill", testVolume)
	c := r.startRead("asyncread")
	const want = 4 << 20 / maxRequest
	waitFor(t, "all parts in flight", func() bool { return r.Status().InFlight >= want })
	before := r.Status().Batches
	r.store.open()
	if out, err := c.finish(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%d requests in %d further batches", want, r.Status().Batches-before)
}

func TestForcedUnmountFailsWhatIsStuck(t *testing.T) {
	r := newRig(t, nil)
	r.child("fill", testVolume)
	c := r.startRead("bigread")
	waitFor(t, "requests in flight", func() bool { return r.Status().InFlight > 0 })
	if st := r.Status(); st.OldestMS < 0 {
		t.Errorf("status: %+v", st)
	}
	if err := r.Unmount(true); err != nil {
		t.Error(err)
	}
	if out, err := c.finish(); err == nil {
		t.Errorf("a read that was aborted succeeded: %s", out)
	}
}

// Writing to the connection's abort file ends the server, although requests wait
// for a store that does not answer.
func TestAbortFromOutside(t *testing.T) {
	r := newRig(t, nil)
	r.child("fill", testVolume)
	c := r.startRead("bigread")
	waitFor(t, "requests in flight", func() bool { return r.Status().InFlight > 0 })
	// MNT_FORCE aborts as the abort file in /sys does, which is not mounted
	// everywhere; the unmounting itself fails, as the mount is in use.
	if err := unix.Unmount(r.dir, unix.MNT_FORCE); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	_, _ = c.finish()
	waitFor(t, "the server ends", func() bool { return r.ended(0) })
}

func TestResized(t *testing.T) {
	r := newRig(t, nil)
	c := r.start("awaitsize", testVolume, fmt.Sprint(2*testSize))
	r.ready(c)
	if err := r.vols.Resize(context.Background(), testVolume, 2*testSize, false); err != nil {
		t.Fatal(err)
	}
	r.Resized(testVolume)
	if out, err := c.finish(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// Files are the same inodes on every mount, and what was written is there.
func TestRemount(t *testing.T) {
	r := newRig(t, nil)
	r.child("fill", testVolume)
	ino := r.child("ino", testVolume)
	if err := r.Unmount(false); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.mount(nil)
	if again := r.child("ino", testVolume); again != ino {
		t.Errorf("inode %s became %s", ino, again)
	}
	r.child("bigread", testVolume)
}
