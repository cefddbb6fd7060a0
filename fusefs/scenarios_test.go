package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/kvbfs/kvbfs/kvstore/storetest"
	"golang.org/x/sys/unix"
)

// scenarios run in a child process; args[0] is the mount.
var scenarios = map[string]func(dir string, args []string) error{
	"create": createScenario, "io": ioScenario, "fsync": fsyncScenario,
	"fallocate": fallocateScenario, "lseek": lseekScenario,
	"attributes": attributesScenario, "names": namesScenario, "only": onlyScenario, "readonly": readonlyScenario,
	"expect": expectScenario, "hold": holdScenario, "fill": fillScenario, "bigread": bigReadScenario,
	"awaitsize": awaitSizeScenario, "many": manyScenario, "asyncread": asyncReadScenario, "whole": wholeScenario,
	"cat": func(dir string, args []string) error {
		data, err := os.ReadFile(filepath.Join(dir, args[0]))
		os.Stdout.Write(data)
		return err
	},
	"ino": func(dir string, args []string) error {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(dir, args[0]), &st)
		fmt.Print(st.Ino)
		return err
	},
}

func runScenario(name string, args []string) int {
	if err := scenarios[name](args[0], args[1:]); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// want compares an error with the one that is due (nil: success).
func want(what string, got, due error) error {
	if !errors.Is(got, due) || due == nil && got != nil {
		return fmt.Errorf("%s: got %v, want %v", what, got, due)
	}
	return nil
}

// alignedBuffer is fit for O_DIRECT.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))&4095)
	return b[skip : skip+n]
}

func createScenario(dir string, _ []string) error {
	path := filepath.Join(dir, "made")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, errWrite := f.WriteAt([]byte("x"), 0)
	_, errVisible := os.Stat(path)
	errs := []error{
		want("write without a size", errWrite, syscall.ENOSPC),
		want("stat while pending", errVisible, nil),
		want("odd size", f.Truncate(1000), syscall.EINVAL),
		want("close", f.Close(), nil),
	}
	// RELEASE comes a moment after close.
	for range 2000 {
		if _, err = os.Stat(path); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	errs = append(errs, want("pending after close", err, syscall.ENOENT))

	f, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, want("truncate -s", f.Truncate(testSize), nil))
	_, err = f.WriteAt([]byte("hello"), 5000)
	errs = append(errs, want("write", err, nil))
	got := make([]byte, 7)
	_, err = f.ReadAt(got, 4999)
	errs = append(errs, want("read", err, nil))
	if string(got) != "\x00hello\x00" {
		errs = append(errs, fmt.Errorf("read %q", got))
	}
	st, err := f.Stat()
	if err != nil || st.Size() != testSize {
		errs = append(errs, fmt.Errorf("fstat: %v, %v", st, err))
	}
	_, errTrunc := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	_, errExcl := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	errs = append(errs,
		want("fsync", f.Sync(), nil),
		want("grow", os.Truncate(path, 3*testSize), nil),
		want("same size", f.Truncate(3*testSize), nil),
		want("shrink", f.Truncate(testSize), syscall.EPERM),
		want("O_TRUNC", errTrunc, syscall.EPERM),
		want("O_EXCL", errExcl, syscall.EEXIST),
		want("close", f.Close(), nil))
	return errors.Join(errs...)
}

// ioScenario compares the file with a model, aligned and not, from several
// goroutines that own a part each.
func ioScenario(dir string, _ []string) error {
	path := filepath.Join(dir, testVolume)
	seed := storetest.Seed(func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	const parts, part = 4, 256 << 10
	var wg sync.WaitGroup
	errs := make([]error, parts+1)
	for p := range parts {
		wg.Go(func() { errs[p] = ioPart(path, seed, int64(p)*part, part, p%2 == 0) })
	}
	wg.Wait()
	errs[parts] = ioEnd(path)
	return errors.Join(errs...)
}

func ioPart(path string, seed uint64, base int64, size int, direct bool) error {
	rng := rand.New(rand.NewPCG(seed, uint64(base)))
	flags, unit := os.O_RDWR, 1
	if direct {
		flags, unit = flags|unix.O_DIRECT, 4096
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	model, buf := make([]byte, size), alignedBuffer(size)
	for i := range 200 {
		off := rng.IntN(size/unit) * unit
		n := min(1+rng.IntN(64<<10), size-off)
		n = (n + unit - 1) / unit * unit
		b := buf[:n]
		if rng.IntN(2) == 0 {
			for j := range b {
				b[j] = byte(rng.Uint32())
			}
			copy(model[off:], b)
			if m, err := f.WriteAt(b, base+int64(off)); m != n || err != nil {
				return fmt.Errorf("write %d at %d: %d, %v", n, off, m, err)
			}
		} else if m, err := f.ReadAt(b, base+int64(off)); m != n || err != nil || !bytes.Equal(b, model[off:off+n]) {
			return fmt.Errorf("read %d at %d, step %d, direct %v: %d, %v, equal %v", n, off, i, direct, m, err, bytes.Equal(b, model[off:off+n]))
		}
	}
	return want("fsync", f.Sync(), nil)
}

// ioEnd looks at what happens at the end of the volume.
func ioEnd(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 8192)
	n, errRead := f.ReadAt(buf, testSize-100)
	m, errBeyond := f.ReadAt(buf, testSize+4096)
	_, errOver := f.WriteAt(buf, testSize-4096)
	if n != 100 || m != 0 {
		err = fmt.Errorf("reads at the end gave %d and %d bytes", n, m)
	}
	return errors.Join(err, want("read over the end", errRead, io.EOF), want("read beyond", errBeyond, io.EOF),
		want("write over the end", errOver, syscall.ENOSPC))
}

// fallocate is fallocate(2), again if a signal interrupts it, as it may: Go's runtime sends
// some of its own.
func fallocate(fd int, mode uint32, off, n int64) (err error) {
	for range 100 {
		if err = unix.Fallocate(fd, mode, off, n); err != unix.EINTR {
			break
		}
	}
	return err
}

func fallocateScenario(dir string, _ []string) error {
	f, err := os.OpenFile(filepath.Join(dir, testVolume), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const n = 64 << 10
	model := bytes.Repeat([]byte{7}, n)
	if _, err := f.WriteAt(model, 0); err != nil {
		return err
	}
	var errs []error
	fd := int(f.Fd())
	for _, c := range []struct {
		mode   uint32
		off, n int64
		due    error
	}{
		{0x03, 4096, 8192, nil}, {0x03, 20000, 10000, nil}, {0x11, 40960, 4096, nil}, {0x10, 50000, 5, nil},
		{0x03, testSize - 4096, 1 << 30, nil}, {0x11, testSize + 4096, 4096, nil},
		{0x00, 0, testSize, nil}, {0x01, 0, 4096, nil},
		{0x00, 0, testSize + 4096, syscall.EOPNOTSUPP}, {0x10, 0, testSize + 4096, syscall.EOPNOTSUPP}, {0x08, 0, 4096, syscall.EOPNOTSUPP},
	} {
		errs = append(errs, want(fmt.Sprintf("fallocate %#x %d+%d", c.mode, c.off, c.n), fallocate(fd, c.mode, c.off, c.n), c.due))
		if c.due == nil && c.mode > 1 && c.off < n {
			clear(model[c.off : c.off+c.n])
		}
	}
	got := make([]byte, n)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
		errs = append(errs, fmt.Errorf("after fallocate: %v, equal %v", err, bytes.Equal(got, model)))
	}
	// The plain one gave every block its place.
	if hole, err := unix.Seek(fd, 0, unix.SEEK_HOLE); hole != testSize || err != nil {
		errs = append(errs, fmt.Errorf("the first hole is at %d, %v", hole, err))
	}
	return errors.Join(append(errs, want("fsync", f.Sync(), nil))...)
}

func lseekScenario(dir string, _ []string) error {
	f, err := os.OpenFile(filepath.Join(dir, testVolume), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 1), 1<<20); err != nil { // zeros are not stored
		return err
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 8192), 2<<20); err != nil {
		return err
	}
	var errs []error
	for _, c := range []struct {
		off    int64
		whence int
		due    int64
		err    error
	}{
		{0, unix.SEEK_DATA, 2 << 20, nil}, {0, unix.SEEK_HOLE, 0, nil}, {2 << 20, unix.SEEK_HOLE, 2<<20 + 8192, nil},
		{2<<20 + 5000, unix.SEEK_DATA, 2<<20 + 5000, nil}, {3 << 20, unix.SEEK_DATA, 0, syscall.ENXIO},
		{testSize, unix.SEEK_HOLE, 0, syscall.ENXIO}, {0, io.SeekEnd, testSize, nil},
	} {
		got, err := unix.Seek(int(f.Fd()), c.off, c.whence)
		errs = append(errs, want(fmt.Sprintf("seek %d %d", c.off, c.whence), err, c.err))
		if err == nil && got != c.due {
			errs = append(errs, fmt.Errorf("seek %d %d gave %d, want %d", c.off, c.whence, got, c.due))
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks != 16 {
		errs = append(errs, fmt.Errorf("st_blocks %d, %v", st.Blocks, err))
	}
	return errors.Join(errs...)
}

func attributesScenario(dir string, _ []string) error {
	path := filepath.Join(dir, testVolume)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Stat(path, &st), unix.Statfs(path, &fs)); err != nil {
		return err
	}
	if st.Size != testSize || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 || st.Blksize != 4096 || st.Blocks != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("stat: %+v", st)
	}
	if fs.Bsize != 4096 || fs.Frsize != 4096 || fs.Blocks == 0 || fs.Namelen != 64 {
		return fmt.Errorf("statfs: %+v", fs)
	}
	var xattr [16]byte
	_, errX := unix.Getxattr(path, "user.x", xattr[:])
	now := time.Now()
	return errors.Join(want("getxattr", errX, syscall.EOPNOTSUPP), want("chmod", os.Chmod(path, 0o644), syscall.EPERM),
		want("utimes", os.Chtimes(path, now, now), nil), want("access", unix.Access(path, unix.R_OK|unix.W_OK), nil))
}

func namesScenario(dir string, _ []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.Name() != statsName && info.Size() != testSize {
			return fmt.Errorf("%s: %v, %v", e.Name(), info, err)
		}
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{statsName, testVolume, "other-1"}) {
		return fmt.Errorf("names: %v", names)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	stat := func(name string) error { _, err := os.Stat(in(name)); return err }
	creat := func(name string) error {
		f, err := os.Create(in(name))
		if err == nil {
			f.Close()
		}
		return err
	}
	return errors.Join(
		want("absent", stat("absent"), syscall.ENOENT), want("bad name", stat("-bad"), syscall.ENOENT),
		want("long name", stat(strings.Repeat("x", 65)), syscall.ENAMETOOLONG), want("longest name", stat(strings.Repeat("x", 64)), syscall.ENOENT),
		want("below a file", stat("disk/x"), syscall.ENOTDIR),
		want("create bad name", creat("a b"), syscall.EINVAL), want("create long name", creat(strings.Repeat("x", 65)), syscall.ENAMETOOLONG),
		want("unlink", syscall.Unlink(in(testVolume)), syscall.EPERM), want("rmdir", syscall.Rmdir(in(testVolume)), syscall.ENOTDIR),
		want("mkdir", syscall.Mkdir(in("d"), 0o700), syscall.EPERM), want("symlink", syscall.Symlink("x", in("l")), syscall.EPERM),
		want("link", syscall.Link(in(testVolume), in("l")), syscall.EPERM), want("rename", syscall.Rename(in(testVolume), in("n")), syscall.EPERM),
		want("mknod", syscall.Mknod(in("p"), syscall.S_IFIFO|0o600, 0), syscall.EPERM),
	)
}

func onlyScenario(dir string, _ []string) error {
	_, errStat := os.Stat(filepath.Join(dir, testVolume))
	_, errCreate := os.Create(filepath.Join(dir, "new"))
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		return fmt.Errorf("entries: %v, %v", entries, err)
	}
	return errors.Join(want("stat", errStat, syscall.ENOENT), want("create", errCreate, syscall.EPERM))
}

func readonlyScenario(dir string, _ []string) error {
	path := filepath.Join(dir, testVolume)
	_, errWrite := os.OpenFile(path, os.O_RDWR, 0)
	_, errCreate := os.Create(filepath.Join(dir, "new"))
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, errRead := f.ReadAt(make([]byte, 8192), 100)
	st, errStat := f.Stat()
	if n != 8192 || errStat != nil || st.Mode().Perm() != 0o400 {
		return fmt.Errorf("read %d bytes, stat %v %v", n, st, errStat)
	}
	return errors.Join(want("open for writing", errWrite, syscall.EROFS), want("create", errCreate, syscall.EROFS),
		want("read", errRead, nil), want("fsync", f.Sync(), nil), want("truncate", os.Truncate(path, 2*testSize), syscall.EROFS))
}

// expectScenario does one thing and compares its errno with the name given.
func expectScenario(dir string, args []string) error {
	path := filepath.Join(dir, args[1])
	var err error
	switch args[0] {
	case "unlink":
		err = syscall.Unlink(path)
	case "stat":
		_, err = os.Stat(path)
	case "read":
		_, err = os.ReadFile(path)
	case "write":
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{3}, 4096), 0)
			f.Close()
		}
	}
	got := ""
	var errno syscall.Errno
	if errors.As(err, &errno) {
		got = unix.ErrnoName(errno)
	}
	if got != args[2] {
		return fmt.Errorf("%s %s: got %v, want %q", args[0], args[1], err, args[2])
	}
	return nil
}
