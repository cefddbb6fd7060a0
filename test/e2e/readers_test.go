//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/test/rig"
)

// openRead opens an image for direct reading.
func openRead(path string) (int, error) {
	return unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
}

// TestReaders: two machines that share nothing but the store read one volume, and
// nobody writes meanwhile; while one writes nobody else reads, except with --stale.
// A reader that was cut off for longer than its lease, while somebody wrote, gives
// errors.
func TestReaders(t *testing.T) {
	mostlyWaits(t)
	rig.RequireFUSE(t)
	r := rig.New(t, 5*time.Minute)
	store := r.MemcachedTCP(128).URL()
	r.Create(store, "v", "16M")
	m := r.Mount(store)
	f := rig.Direct(t, m.Image("v"))
	fill(t, f, 64, 1)
	their := []string{"KVBFS_STATE_DIR=" + r.Mkdir("their-state"), "KVBFS_RUNTIME_DIR=" + r.Mkdir("their-run")}
	kvbfs := func(args ...string) rig.Result {
		return r.Must(rig.Cmd{Args: append([]string{r.Bin}, args...), Env: their})
	}
	dir, stale := r.Mkdir("theirs"), r.Mkdir("stale")
	kvbfs(r.MountArgs(dir, "--store", store)...)
	kvbfs(r.MountArgs(stale, "--store", store, "--read-only", "--stale")...)
	image := filepath.Join(dir, "v")

	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	is := func(fd int, version uint64) {
		t.Helper()
		if _, err := unix.Pread(fd, buf, 3*rig.BlockSize); err != nil {
			t.Fatal(err)
		}
		if rig.Stamp(want, 3, version); string(buf) != string(want) {
			t.Fatalf("a block is not of version %d", version)
		}
	}
	if _, err := openRead(image); err != unix.EBUSY {
		t.Fatalf("opening for reading what another machine writes to: %v", err)
	}
	old, err := openRead(filepath.Join(stale, "v"))
	must(t, err)
	is(old, 1)
	unix.Close(old)
	f.Close()

	var theirs int
	rig.Eventually(t, 60*time.Second, "the other machine reads", func() bool {
		theirs, err = openRead(image)
		return err == nil
	})
	is(theirs, 1)
	mine, err := openRead(m.Image("v"))
	must(t, err)
	is(mine, 1)
	var locks []struct {
		Volume, Mode string
		PID          int
		SameHost     bool `json:"same_host"`
	}
	must(t, json.Unmarshal([]byte(r.Kvbfs("lock", "ls", "--json", "--store", store)), &locks))
	if len(locks) != 2 || locks[0].Mode != "read" || locks[1].Mode != "read" || locks[0].SameHost == locks[1].SameHost {
		t.Errorf("lock ls: %+v", locks)
	}
	if _, err := rig.OpenDirect(m.Image("v")); !errors.Is(err, unix.EBUSY) {
		t.Errorf("opening for writing beside a reader elsewhere: %v", err)
	}
	if lines := logLines(r, "open for reading on"); len(lines) == 0 {
		t.Error("the log does not name the reader")
	}

	// The other machine stops; this one takes the volume, and writes.
	daemon := 0
	for _, pid := range r.Processes() {
		cmdline, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if strings.Contains(string(cmdline), dir+"\x00") {
			daemon = pid
		}
	}
	if daemon == 0 {
		t.Fatal("the other machine's daemon was not found")
	}
	must(t, syscall.Kill(daemon, syscall.SIGSTOP))
	reading := readOn(mine)
	rig.Eventually(t, 90*time.Second, "the volume may be written to", func() bool {
		f, err = rig.OpenDirect(m.Image("v"))
		return err == nil
	})
	if err := reading(); err != nil {
		t.Errorf("reading while the volume was opened for writing in the same mount: %v", err)
	}
	fill(t, f, 64, 2)
	is(mine, 2) // opened for reading in the same daemon
	must(t, syscall.Kill(daemon, syscall.SIGCONT))
	for _, off := range []int64{0, 3 * rig.BlockSize, 8 << 20} {
		if n, err := unix.Pread(theirs, buf, off); err != unix.EIO {
			t.Errorf("a reader that was overtaken reads %d bytes at %d: %v, want EIO", n, off, err)
		}
	}
	unix.Close(theirs)
	unix.Close(mine)
	f.Close()
	rig.Eventually(t, 60*time.Second, "the other machine reads again", func() bool {
		theirs, err = openRead(image)
		return err == nil
	})
	is(theirs, 2)

	// A reader that is killed is waited for elsewhere; by force it loses its share at once.
	if res := r.TryKvbfs("lock", "break", "v", "--store", store); res.Code != 1 || !strings.Contains(res.Stderr, "open for reading") {
		t.Errorf("breaking the share of a reader that lives: status %d\n%s", res.Code, res.All())
	}
	r.Kvbfs("lock", "break", "v", "--force", "--store", store)
	if _, err := unix.Pread(theirs, buf, 0); err != unix.EIO {
		t.Errorf("a reader whose share was broken: %v, want EIO", err)
	}
	unix.Close(theirs)
	f, err = rig.OpenDirect(m.Image("v"))
	must(t, err)
	f.Close()
	kvbfs("umount", dir)
	kvbfs("umount", stale)
	m.Umount()
}

// readOn reads a block again and again until what it returns is called, which tells
// how that went.
func readOn(fd int) (end func() error) {
	stop, result := make(chan struct{}), make(chan error, 1)
	go func() {
		buf := rig.Aligned(rig.BlockSize)
		for {
			_, err := unix.Pread(fd, buf, 0)
			select {
			case <-stop:
				result <- err
				return
			case <-time.After(10 * time.Millisecond):
			}
			if err != nil {
				result <- err
				return
			}
		}
	}()
	return func() error {
		close(stop)
		return <-result
	}
}

// logLines are the lines of all daemons' logs that contain a word.
func logLines(r *rig.Rig, word string) (lines []string) {
	logs, _ := filepath.Glob(filepath.Join(r.RuntimeDir(), "mounts", "*.log"))
	for _, name := range logs {
		text, _ := os.ReadFile(name)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, word) {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines
}
