package losetup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const imageSize = 64 << 20

// needLoop skips where loop devices cannot be made.
func needLoop(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	if _, err := freeNumber(); errors.Is(err, ErrNoLoop) {
		t.Skip(err)
	}
}

// newImage makes a sparse file and detaches whatever is attached to it at the end.
func newImage(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, imageSize); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		devices, err := Find(file)
		if err != nil {
			t.Error(err)
		}
		for _, d := range devices {
			if err := Detach(context.Background(), d); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
	})
	return file
}

func mustAttach(t testing.TB, file string, opt Options) Device {
	t.Helper()
	if opt.Warn == nil {
		opt.Warn = func(msg string) { t.Log("warned:", msg) }
	}
	d, existing, err := Attach(t.Context(), file, opt)
	if errors.Is(err, ErrBuffered) {
		t.Skip(err)
	}
	if err != nil || existing {
		t.Fatalf("Attach: existing %t, %v", existing, err)
	}
	return d
}

func TestAttachIsVerifiedTunedAndUndone(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})
	want := Device{Path: d.Path, Backing: file, Size: imageSize, DirectIO: true, BlockSize: BlockSize, ReadAhead: 1024, seq: d.seq}
	if d != want {
		t.Fatalf("got %+v, want %+v", d, want)
	}
	n, err := numberOf(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"queue/max_sectors_kb": 1024, "queue/read_ahead_kb": 1024, "queue/discard_max_bytes": 64 << 20} {
		if got, err := number64(n, name); err != nil || got != want {
			t.Errorf("%s = %d, want %d (%v)", name, got, want, err)
		}
	}
	if got, err := Get(d.Path); err != nil || got != want {
		t.Errorf("Get: %+v, %v", got, err)
	}
	// What is written to the device is in the file.
	pattern := strings.Repeat("kvbfs.1\n", BlockSize/8)
	if err := os.WriteFile(d.Path, []byte(pattern), 0); err != nil {
		t.Fatal(err)
	}
	if err := Detach(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := Get(d.Path); !errors.Is(err, ErrNotAttached) {
		t.Errorf("Get after Detach: %v, want ErrNotAttached", err)
	}
	b, err := os.ReadFile(file)
	if err != nil || string(b[:BlockSize]) != pattern {
		t.Errorf("the file does not hold what was written to the device (%v)", err)
	}
	if got, err := number64(n, "queue/read_ahead_kb"); attached(n) {
		t.Log("another program took the device at once: its queue is not looked at")
	} else if err != nil || got == 1024 {
		t.Errorf("read_ahead_kb is still %d after the detach (%v)", got, err)
	}
	if err := Detach(t.Context(), d); !errors.Is(err, ErrNotAttached) {
		t.Errorf("second Detach: %v, want ErrNotAttached", err)
	}
}

func TestAttachTwiceIsOneDevice(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, link} {
		again, existing, err := Attach(t.Context(), name, Options{})
		if err != nil || !existing || again != d {
			t.Errorf("Attach(%s): %+v existing=%t %v, want %+v", name, again, existing, err, d)
		}
		if found, err := Find(name); err != nil || len(found) != 1 || found[0] != d {
			t.Errorf("Find(%s): %+v, %v", name, found, err)
		}
	}
	if _, _, err := Attach(t.Context(), file, Options{ReadOnly: true}); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), d.Path) {
		t.Errorf("read-only attach of a writable device: %v, want ErrConflict that names %s", err, d.Path)
	}
}

func TestManyAttachesAtOnce(t *testing.T) {
	needLoop(t)
	const files, each = 6, 3
	images := make([]string, files)
	for i := range images {
		images[i] = newImage(t)
	}
	var mu sync.Mutex
	devices := map[string]map[string]Device{} // file -> devices by path
	fresh := 0
	var wg sync.WaitGroup
	for i := range files * each {
		wg.Go(func() {
			file := images[i%files]
			d, existing, err := Attach(t.Context(), file, Options{})
			if err != nil {
				t.Errorf("Attach %s: %v", file, err)
				return
			}
			if d.Backing != file {
				t.Errorf("%s has %s, want %s", d.Path, d.Backing, file)
			}
			mu.Lock()
			defer mu.Unlock()
			if !existing {
				fresh++
			}
			if devices[file] == nil {
				devices[file] = map[string]Device{}
			}
			devices[file][d.Path] = d
		})
	}
	wg.Wait()
	if fresh != files {
		t.Errorf("%d devices were made for %d files", fresh, files)
	}
	for file, d := range devices {
		if len(d) != 1 {
			t.Errorf("%s is on %v, want one device", file, d)
		}
	}
	// And all go at once. Of two that detach one device one does it; the other one says
	// so too if it came while the kernel was at it.
	var gone sync.Map
	for _, ds := range devices {
		for path, d := range ds {
			for range 2 {
				wg.Go(func() {
					switch err := Detach(t.Context(), d); {
					case err == nil:
						gone.Store(path, true)
					case !errors.Is(err, ErrNotAttached):
						t.Errorf("Detach %s: %v", path, err)
					}
				})
			}
		}
	}
	wg.Wait()
	for file, ds := range devices {
		for d := range ds {
			if _, done := gone.Load(d); !done {
				t.Errorf("nobody detached %s", d)
			}
		}
		if found, err := Find(file); err != nil || len(found) > 0 {
			t.Errorf("%s is on %v: %v", file, found, err)
		}
	}
}

func TestReadOnly(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{ReadOnly: true})
	if !d.ReadOnly {
		t.Fatalf("%+v is not read-only", d)
	}
	if err := os.WriteFile(d.Path, make([]byte, BlockSize), 0); err == nil {
		t.Error("a read-only device took a write")
	}
	if _, _, err := Attach(t.Context(), file, Options{}); !errors.Is(err, ErrConflict) {
		t.Errorf("writable attach of a read-only device: %v, want ErrConflict", err)
	}
}

func TestDetachRefusesUsers(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})

	held, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = Detach(t.Context(), d)
	unix.Close(held)
	if self := fmt.Sprintf("process %d", os.Getpid()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), self) {
		t.Errorf("Detach of an open device: %v, want ErrBusy that names %s", err, self)
	}

	if out, err := exec.Command("mke2fs", "-q", "-F", d.Path).CombinedOutput(); err != nil {
		t.Skipf("mke2fs: %v %s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "a mount") // mountinfo escapes the blank
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(d.Path, dir, "ext2", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		t.Skip("mount:", err)
	}
	err = Detach(t.Context(), d)
	users := Users(d.Path)
	if uerr := unix.Unmount(dir, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), dir) {
		t.Errorf("Detach of a mounted device: %v, want ErrBusy that names %s", err, dir)
	}
	if len(users) == 0 || users[0] != "mounted on "+dir {
		t.Errorf("Users = %q", users)
	}
	if got, err := Get(d.Path); err != nil || got.Autoclear {
		t.Errorf("a refused detach left %+v, %v", got, err)
	}
	if err := Detach(t.Context(), d); err != nil {
		t.Errorf("Detach once unused: %v", err)
	}
}

func TestDetachSeesOtherMountNamespaces(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})
	if out, err := exec.Command("mke2fs", "-q", "-F", d.Path).CombinedOutput(); err != nil {
		t.Skipf("mke2fs: %v %s", err, out)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount "$1" "$2" && echo ready && read line; umount "$2"`, "sh", d.Path, t.TempDir())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	ready, _ := out.Read(make([]byte, 16))
	derr := Detach(t.Context(), d)
	in.Close()
	if err := cmd.Wait(); ready == 0 {
		t.Skip("no mount in a namespace of its own:", err)
	}
	if !errors.Is(derr, ErrBusy) || !strings.Contains(derr.Error(), "mount namespace") {
		t.Errorf("Detach: %v, want ErrBusy that names the other mount namespace", derr)
	}
}

func TestDetachLaterWaitsForTheLastUser(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})
	held, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = DetachLater(d)
	got, getErr := Get(d.Path)
	unix.Close(held)
	if err != nil || getErr != nil || !got.Autoclear {
		t.Fatalf("DetachLater: %v; it left %+v, %v", err, got, getErr)
	}
	for range 1000 {
		if found, err := Find(file); err != nil || len(found) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the device is still there after its last user")
}

func TestResize(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	d := mustAttach(t, file, Options{})
	if err := os.Truncate(file, 2*imageSize); err != nil {
		t.Fatal(err)
	}
	if err := Resize(d.Path); err != nil {
		t.Fatal(err)
	}
	if got, err := Get(d.Path); err != nil || got.Size != 2*imageSize {
		t.Errorf("after Resize: %+v, %v", got, err)
	}
}

func TestUnusableFiles(t *testing.T) {
	needLoop(t)
	dir := t.TempDir()
	empty, odd := filepath.Join(dir, "empty"), filepath.Join(dir, "odd")
	for name, size := range map[string]int64{empty: 0, odd: BlockSize + 512} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, size); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Attach(t.Context(), name, Options{}); !errors.Is(err, ErrBadSize) {
			t.Errorf("%s: %v, want ErrBadSize", name, err)
		}
	}
	if _, _, err := Attach(t.Context(), filepath.Join(dir, "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, _, err := Attach(t.Context(), dir, Options{}); err == nil {
		t.Error("a directory was attached")
	}
}

func TestAnAttachThatWasCancelledLeavesNothing(t *testing.T) {
	needLoop(t)
	file := newImage(t)
	lock, err := lockImage(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer lock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := Attach(ctx, file, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Attach: %v, want the context's error", err)
	}
	if found, err := Find(file); err != nil || len(found) != 0 {
		t.Errorf("left %+v, %v", found, err)
	}
}

func TestAbandonedResultIsUndone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	hang, undone := make(chan struct{}), make(chan int)
	go func() { time.Sleep(time.Millisecond); cancel() }()
	_, err := interruptible(ctx, func() (int, error) { <-hang; return 7, nil }, func(v int, err error) { undone <- v })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	close(hang)
	if v := <-undone; v != 7 {
		t.Errorf("undone with %d", v)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]int{"/dev/loop0": 0, "loop17": 17, "/dev/loop": -1, "/dev/loop-control": -1, "/dev/sda": -1, "/tmp/loop3": -1, "loop-1": -1} {
		got, err := numberOf(name)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("numberOf(%q) = %d, want %d (%v)", name, got, want, err)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	needLoop(b)
	file := newImage(b)
	mustAttach(b, file, Options{})
	b.ReportAllocs()
	for b.Loop() {
		if found, err := Find(file); err != nil || len(found) != 1 {
			b.Fatal(found, err)
		}
	}
}
