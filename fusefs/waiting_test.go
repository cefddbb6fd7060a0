package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Scenarios that wait for the test, or for the store.

// untilStdinEnds waits until the test is done with us.
func untilStdinEnds() { _, _ = io.Copy(io.Discard, os.Stdin) }

// awaitGo lets the test act between the open of a file and its use, if it wants.
func awaitGo(args []string) {
	if len(args) > 1 {
		fmt.Println("ready")
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
}

func holdScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	untilStdinEnds()
	_, err = f.WriteAt([]byte("still works"), 12345)
	return errors.Join(err, f.Close())
}

const fillByte = 0x5a

func fillScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{fillByte}, testSize), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

func bigReadScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	awaitGo(args)
	b := alignedBuffer(4 << 20)
	if n, err := f.ReadAt(b, 0); err != nil || n != len(b) {
		return fmt.Errorf("read %d: %w", n, err)
	}
	if bytes.Count(b, []byte{fillByte}) != len(b) {
		return errors.New("wrong data")
	}
	return nil
}

// iocb of <linux/aio_abi.h>, little-endian.
type iocb struct {
	_          uint64    // data
	_          [2]uint32 // key, flags
	_          [2]uint16 // opcode (0: pread), priority
	fd         uint32
	buf, bytes uint64
	_          int64 // offset
	_          uint64
	_          [2]uint32 // flags, eventfd
}

// asyncReadScenario reads 4 MiB in one request of Linux AIO.
func asyncReadScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	awaitGo(args)
	var ring uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ring)), 0); errno != 0 {
		return fmt.Errorf("io_setup: %w", errno)
	}
	b := alignedBuffer(4 << 20)
	cb := &iocb{fd: uint32(f.Fd()), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), bytes: uint64(len(b))}
	list := [1]*iocb{cb}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, ring, 1, uintptr(unsafe.Pointer(&list))); errno != 0 {
		return fmt.Errorf("io_submit: %w", errno)
	}
	var event struct {
		data, obj uint64
		res, res2 int64
	}
	if _, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, ring, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0); errno != 0 {
		return fmt.Errorf("io_getevents: %w", errno)
	}
	if event.res != int64(len(b)) || bytes.Count(b, []byte{fillByte}) != len(b) {
		return fmt.Errorf("read gave %d", event.res)
	}
	return nil
}

func awaitSizeScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, _ := strconv.ParseInt(args[1], 10, 64)
	if _, err := f.Stat(); err != nil {
		return err
	}
	fmt.Println("ready")
	untilStdinEnds()
	for range 500 {
		if end, err := f.Seek(0, io.SeekEnd); err == nil && end == size {
			_, err = f.WriteAt([]byte("grown"), size-5)
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the new size was not seen")
}

// manyRequests of one block each, from several threads, are what manyScenario
// does after it is told to go.
const manyRequests = 16000

// manyScenario reads and writes blocks, and waits before and after.
func manyScenario(dir string, args []string) error {
	f, err := os.OpenFile(filepath.Join(dir, args[0]), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	awaitGo(args)
	const threads = 8
	errs := make(chan error, threads)
	for i := range threads {
		go func() {
			b := alignedBuffer(4096)
			for n := range manyRequests / threads {
				off := int64((n*threads+i)%(testSize/4096)) * 4096
				var err error
				if n%2 == 0 {
					_, err = f.ReadAt(b, off)
				} else {
					b[0] = byte(n) | 1 // never all zeros
					_, err = f.WriteAt(b, off)
				}
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range threads {
		err = errors.Join(err, <-errs)
	}
	fmt.Println("done")
	untilStdinEnds()
	return err
}
