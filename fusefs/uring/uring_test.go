package uring

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// nullFS is a directory with one file, f, whose blocks hold their own number.
type nullFS struct {
	fuse.RawFileSystem
	size uint64
}

func (n *nullFS) attr(a *fuse.Attr, node uint64) {
	a.Ino, a.Nlink, a.Blksize = node, 1, 4096
	if node == 1 {
		a.Mode = syscall.S_IFDIR | 0o700
		return
	}
	a.Mode, a.Size = syscall.S_IFREG|0o600, n.size
}

func (n *nullFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n.attr(&out.Attr, in.NodeId)
	return fuse.OK
}

func (n *nullFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "f" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	n.attr(&out.Attr, 2)
	return fuse.OK
}

func (n *nullFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

type nullHandler struct {
	cold  *fuse.ProtocolServer
	later bool
}

func (h *nullHandler) Batch(_ int, entries []*Entry) {
	for _, e := range entries {
		switch e.In().Opcode {
		case 15: // READ
			in := e.Args()
			off, n := binary.NativeEndian.Uint64(in[8:]), binary.NativeEndian.Uint32(in[16:])
			for i := uint32(0); i < n; i += 4096 {
				binary.NativeEndian.PutUint64(e.Buffer()[i:], (off+uint64(i))/4096)
			}
			if h.later {
				go e.Later(0, int(n))
				continue
			}
			e.Reply(0, int(n))
		case 16: // WRITE
			n := len(e.Payload())
			clear(e.Buffer()[:8])
			binary.NativeEndian.PutUint32(e.Buffer(), uint32(n))
			e.Reply(0, 8)
		default:
			go func() { e.Later(Cold(h.cold, e)) }()
		}
	}
}

func mountNull(t testing.TB, later bool) string {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	old, err := os.ReadFile(EnableParameter)
	if err != nil {
		t.Skip("this kernel has no FUSE over io_uring: ", err)
	}
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("no /dev/fuse: ", err)
	}
	if err := os.WriteFile(EnableParameter, []byte("Y"), 0o644); err != nil {
		t.Skip("cannot enable: ", err)
	}
	defer os.WriteFile(EnableParameter, old, 0o644)
	if err := unix.Mount("null", dir, "fuse.null", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	keep, _ := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	fs := &nullFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), size: 1 << 30}
	opts := &fuse.MountOptions{
		MaxWrite: 1 << 20, MaxBackground: 256, DisableXAttrs: true, DisableSplice: true,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_OVER_IO_URING,
	}
	srv, err := fuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", fd), opts)
	if err != nil {
		t.Fatal(err)
	}
	ps, err := ColdServer(fs, opts, srv.KernelSettings())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(keep, &nullHandler{cold: ps, later: later}, Options{Payload: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve()
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		done := make(chan struct{})
		go func() { c.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("threads did not end after the unmount")
		}
		unix.Close(keep)
	})
	return filepath.Join(dir, "f")
}

// TestMain doubles as the process that touches the mount.
func TestMain(m *testing.M) {
	if f := os.Getenv("URING_TOUCH"); f != "" {
		if err := touch(f); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func touch(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	mem, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for i := range 2000 {
		n := 4096
		if i%100 == 0 {
			n = 1 << 20
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

func TestReadWrite(t *testing.T) {
	for _, later := range []bool{false, true} {
		t.Run(fmt.Sprintf("later=%v", later), func(t *testing.T) {
			f := mountNull(t, later)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "URING_TOUCH="+f)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, strings.TrimSpace(string(out)))
			}
		})
	}
}

// TestFio prints what the transport does with a store that answers at once.
func TestFio(t *testing.T) {
	if os.Getenv("URING_FIO") == "" {
		t.Skip("set URING_FIO=1 to measure")
	}
	f := mountNull(t, false)
	for _, job := range [][]string{
		{"--rw=randread", "--iodepth=32", "--numjobs=2"}, {"--rw=randwrite", "--iodepth=32", "--numjobs=2"},
		{"--rw=randread", "--iodepth=1", "--numjobs=1"},
	} {
		args := append([]string{"--name=n", "--filename=" + f, "--bs=4k", "--direct=1", "--ioengine=libaio",
			"--time_based", "--runtime=3", "--norandommap", "--group_reporting", "--output-format=terse"}, job...)
		out, err := exec.Command("fio", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		w := strings.Split(string(out), ";")
		t.Log(job, "read IOPS", w[7], "lat", w[39], "write IOPS", w[48])
	}
}
