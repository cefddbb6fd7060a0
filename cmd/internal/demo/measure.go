package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sort"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	depth     = 32
	// span of one measurement: long enough for a stable first digit, short enough
	// for six of them to fit a demo.
	span = 700 * time.Millisecond
)

// meter measures the bench volume.
type meter struct{ d *demo }

// openDirect opens for direct I/O: no page cache between the figures and the store.
func openDirect(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

// aligned returns n bytes at an address that O_DIRECT takes.
func aligned(n int) []byte {
	raw := make([]byte, n+blockSize)
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & (blockSize - 1))
	return raw[skip : skip+n : skip+n]
}

// random fills b with data that no layer can take for zeros or compress.
func random(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 1)
	for i := 0; i+8 <= len(b); i += 8 {
		*(*uint64)(unsafe.Pointer(&b[i])) = r.Uint64() | 1
	}
}

// workers runs f on n threads at once until each returns, and gives the first
// error. Each thread blocks in its own system call: the runtime is given a
// processor for each, since it would otherwise notice a blocked one only after
// tens of microseconds.
func workers(n int, f func(i int) error) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + n))
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// on opens the bench volume by the best way.
func (m *meter) on(ctx context.Context, c *column, f func(fd int) error) error {
	return m.d.way.disk(ctx, c, benchVolume, func(path string) error {
		fd, err := openDirect(path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(fd)
	})
}

// fill writes the whole volume once.
func (m *meter) fill(ctx context.Context, c *column) (res cell, err error) {
	const chunk = 1 << 20
	err = m.on(ctx, c, func(fd int) error {
		var next atomic.Int64
		begin := time.Now()
		err := workers(4, func(i int) error {
			buf := aligned(chunk)
			random(buf, uint64(i))
			for ctx.Err() == nil {
				off := next.Add(chunk) - chunk
				if off >= benchBytes {
					return nil
				}
				if err := full(unix.Pwrite(fd, buf, off))(chunk); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
		if err == nil {
			err = unix.Fsync(fd)
		}
		res = rate(benchBytes, time.Since(begin))
		return err
	})
	return res, err
}

// full turns a short transfer into an error.
func full(n int, err error) func(want int) error {
	return func(want int) error {
		if err == nil && n != want {
			return fmt.Errorf("%d of %d bytes", n, want)
		}
		return err
	}
}

func (m *meter) reads(ctx context.Context, c *column) (cell, error) {
	return m.storm(ctx, c, unix.Pread)
}

func (m *meter) writes(ctx context.Context, c *column) (cell, error) {
	return m.storm(ctx, c, unix.Pwrite)
}

// storm does random 4 KiB operations, 32 at a time.
func (m *meter) storm(ctx context.Context, c *column, op func(int, []byte, int64) (int, error)) (res cell, err error) {
	err = m.on(ctx, c, func(fd int) error {
		var done atomic.Int64
		begin := time.Now()
		end := begin.Add(span)
		err := workers(depth, func(i int) error {
			buf := aligned(blockSize)
			random(buf, uint64(i))
			r := rand.New(rand.NewPCG(uint64(i), uint64(begin.UnixNano())))
			for n := 0; ; n++ {
				if n%16 == 0 && (ctx.Err() != nil || time.Now().After(end)) {
					return ctx.Err()
				}
				off := r.Int64N(benchBytes/blockSize) * blockSize
				if err := full(op(fd, buf, off))(blockSize); err != nil {
					return err
				}
				done.Add(1)
			}
		})
		res = perSecond(done.Load(), time.Since(begin))
		return err
	})
	return res, err
}

// latency is the median of reads one at a time.
func (m *meter) latency(ctx context.Context, c *column) (res cell, err error) {
	err = m.on(ctx, c, func(fd int) error {
		buf := aligned(blockSize)
		var took []time.Duration
		for end := time.Now().Add(span); time.Now().Before(end) && ctx.Err() == nil; {
			off := rand.Int64N(benchBytes/blockSize) * blockSize
			begin := time.Now()
			if err := full(unix.Pread(fd, buf, off))(blockSize); err != nil {
				return err
			}
			took = append(took, time.Since(begin))
		}
		if len(took) == 0 {
			return ctx.Err()
		}
		sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
		us := float64(took[len(took)/2].Nanoseconds()) / 1e3
		res = cell{Text: fmt.Sprintf("%.0f us", us), Value: us, Unit: "us"}
		return nil
	})
	return res, err
}
