// Package fusetest is what the tests of the transports share: a file system that
// answers at once, a mount of it, and a process that uses it. The process that
// serves a mount must not touch it, so the test binary runs itself again.
package fusetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/fusefs/uring"
)

// MaxWrite is the largest request in bytes of mounts made here.
const MaxWrite = 1 << 20

// Entry is what the entries of the transports have in common.
type Entry interface {
	In() *uring.InHeader
	Args() []byte
	Payload() []byte
	Buffer() []byte
	Reply(errno, n int)
	Later(errno, n int)
	Raw() []byte
	LaterRaw(reply []byte)
}

// fileSystem is a directory with one file, f, whose blocks hold their own number.
type fileSystem struct{ fuse.RawFileSystem }

const fileSize = 1 << 30

func attr(a *fuse.Attr, node uint64) {
	a.Ino, a.Nlink, a.Blksize = node, 1, 4096
	if node == 1 {
		a.Mode = syscall.S_IFDIR | 0o700
		return
	}
	a.Mode, a.Size = syscall.S_IFREG|0o600, fileSize
}

func (fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	attr(&out.Attr, in.NodeId)
	return fuse.OK
}

func (fileSystem) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "f" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	attr(&out.Attr, 2)
	return fuse.OK
}

func (fileSystem) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

// Mount is a mounted connection whose INIT was answered.
type Mount struct {
	Dir, File string
	FD        int
	cold      *fuse.ProtocolServer
	restore   func() // the kernel's parameter
}

// lasting: the kernel's parameter was on for longer than any mount takes.
var lasting atomic.Bool

// LockRings keeps tests of other processes, which lock it too, off the kernel's parameter:
// one that puts it back while we mount takes the rings away from us. A daemon that some
// test started does not lock it: what such a one has switched on it puts back in a moment,
// and that is waited for.
func LockRings(t testing.TB) (unlock func()) {
	t.Helper()
	f, err := os.Open(uring.EnableParameter)
	if err != nil {
		return func() {} // of this kernel nobody gets rings
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		t.Fatalf("locking %s: %v", uring.EnableParameter, err)
	}
	for end := time.Now().Add(2 * time.Second); !lasting.Load(); time.Sleep(10 * time.Millisecond) {
		if on, err := os.ReadFile(uring.EnableParameter); err != nil || strings.TrimSpace(string(on)) != "Y" {
			break
		}
		lasting.Store(time.Now().After(end))
	}
	return func() {
		// Not by closing alone: a process that is being started has the descriptor too.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}
}

// New mounts, over io_uring if rings is set; the test skips where that is not to be
// had. Whoever serves it has to be started before New's caller returns.
func New(t testing.TB, rings bool) *Mount {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	opts := &fuse.MountOptions{
		MaxWrite: MaxWrite, MaxBackground: 256, DisableXAttrs: true, DisableSplice: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
	}
	restore := func() {}
	if rings {
		unlock := LockRings(t)
		old, err := os.ReadFile(uring.EnableParameter)
		if err == nil {
			err = os.WriteFile(uring.EnableParameter, []byte("Y"), 0o644)
		}
		if err != nil {
			unlock()
			t.Skip("no FUSE over io_uring here: ", err)
		}
		restore = func() {
			_ = os.WriteFile(uring.EnableParameter, old, 0o644)
			unlock()
		}
		opts.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
	}
	m := &Mount{Dir: t.TempDir(), restore: sync.OnceFunc(restore), cold: fuse.NewProtocolServer(fileSystem{fuse.NewDefaultRawFileSystem()}, opts)}
	t.Cleanup(m.restore)
	m.File = filepath.Join(m.Dir, "f")
	var err error
	if m.FD, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Skip("no /dev/fuse: ", err)
	}
	t.Cleanup(func() { _ = unix.Close(m.FD) })
	if err := unix.Mount("null", m.Dir, "fuse.null", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", m.FD)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(m.Dir, unix.MNT_DETACH) })
	return m
}

// Init answers the first request; it may serve as devfuse.ReadInit's function.
func (m *Mount) Init(request []byte) ([]byte, error) {
	reply := make([]byte, 4096)
	n, st := m.cold.HandleRequest([][]byte{request}, [][]byte{reply})
	if !st.Ok() {
		return nil, fmt.Errorf("INIT: %v", st)
	}
	return reply[:n], nil
}

// Ends is called when the mount is served. It unmounts when the test ends, and
// looks whether wait returns then.
func (m *Mount) Ends(t testing.TB, wait func()) {
	m.restore()
	t.Cleanup(func() {
		_ = unix.Unmount(m.Dir, unix.MNT_DETACH)
		done := make(chan struct{})
		go func() { wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Error("threads did not end after the unmount")
		}
	})
}

// Answer serves a request: READ with the blocks' numbers, WRITE with success, the
// rest by go-fuse. later: from another goroutine.
func (m *Mount) Answer(e Entry, later bool) {
	switch e.In().Opcode {
	case 15: // READ
		in := e.Args()
		off, n := binary.NativeEndian.Uint64(in[8:]), binary.NativeEndian.Uint32(in[16:])
		for i := uint32(0); i < n; i += 4096 {
			binary.NativeEndian.PutUint64(e.Buffer()[i:], (off+uint64(i))/4096)
		}
		if later {
			go e.Later(0, int(n))
			return
		}
		e.Reply(0, int(n))
	case 16: // WRITE: the blocks have to be those that were read
		in, data := e.Args(), e.Payload()
		off, n := binary.NativeEndian.Uint64(in[8:]), binary.NativeEndian.Uint32(in[16:])
		errno := 0
		if int(n) != len(data) {
			errno = int(syscall.EINVAL)
		}
		for i := 0; i < len(data); i += 4096 {
			if binary.NativeEndian.Uint64(data[i:]) != (off+uint64(i))/4096 {
				errno = int(syscall.EILSEQ)
			}
		}
		clear(e.Buffer()[:8])
		binary.NativeEndian.PutUint32(e.Buffer(), n)
		e.Reply(errno, 8)
	default:
		go func() {
			reply := make([]byte, MaxWrite+4096)
			n, st := m.cold.HandleRequest([][]byte{e.Raw()}, [][]byte{reply})
			if !st.Ok() {
				e.Later(int(fuse.EIO), 0)
				return
			}
			e.LaterRaw(reply[:n])
		}()
	}
}

// touchVariable names the file to touch for a test binary that is run again.
const touchVariable = "FUSETEST_TOUCH"

// Main is for TestMain.
func Main(m *testing.M) {
	if f := os.Getenv(touchVariable); f != "" {
		if err := touch(f); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Touch reads and writes the file from n processes at once.
func (m *Mount) Touch(t testing.TB, n int) {
	t.Helper()
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, n)
	for range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), touchVariable+"="+m.File)
		go func() {
			out, err := cmd.CombinedOutput()
			results <- result{out, err}
		}()
	}
	for range n {
		if r := <-results; r.err != nil {
			t.Errorf("%v: %s", r.err, strings.TrimSpace(string(r.out)))
		}
	}
}

func touch(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := unix.Mmap(-1, 0, MaxWrite, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for i := range 2000 {
		n := 4096
		if i%100 == 0 {
			n = MaxWrite
		}
		off := int64(i%255) << 20
		if got, err := f.ReadAt(mem[:n], off); err != nil || got != n {
			return fmt.Errorf("read %d at %d: %d, %v", n, off, got, err)
		}
		for j := 0; j < n; j += 4096 {
			if got := *(*uint64)(unsafe.Pointer(&mem[j])); got != uint64(off+int64(j))/4096 {
				return fmt.Errorf("block %d reads as %d", (off+int64(j))/4096, got)
			}
		}
		if _, err := f.WriteAt(mem[:n], off); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(name), "nothing")); !os.IsNotExist(err) {
		return fmt.Errorf("stat of a missing file: %v", err)
	}
	return nil
}
