//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestWriteBackSpeed measures overwrites of 4 KiB one at a time through a delay of 1 ms,
// with write-back and without in alternation, and prints medians; docs/cache.md has them.
// It asserts nothing, and runs with KVBFS_MEASURE=1 only.
func TestWriteBackSpeed(t *testing.T) {
	if os.Getenv("KVBFS_MEASURE") == "" {
		t.Skip("a measurement: KVBFS_MEASURE=1 runs it")
	}
	rig.RequireFUSE(t)
	r := rig.New(t, 5*time.Minute)
	p := rig.NewProxy(t, r.MemcachedTCP(256).Addr, 0)
	const blocks = 4096
	var files [2]*rig.File
	for i, flags := range [][]string{nil, {"--cache=writeback"}} {
		name := fmt.Sprintf("v%d", i)
		r.Create(p.URL(), name, "64M")
		m := r.Mount(p.URL(), append(flags, "--only", name)...)
		defer m.Umount()
		f := rig.Direct(t, m.Image(name))
		defer f.Close()
		fill(t, f, blocks, 1)
		files[i] = f
	}
	for _, c := range []struct {
		name    string
		delay   time.Duration
		flushes int // a flush after so many writes
	}{
		{"1 ms", time.Millisecond, 1 << 30}, {"1 ms, a flush each 100 writes", time.Millisecond, 100},
		{"1 ms, a flush each 10 writes", time.Millisecond, 10}, {"no delay", 0, 1 << 30},
	} {
		p.SetDelay(c.delay)
		var rates [2][]float64
		for range 7 {
			for i, f := range files {
				rates[i] = append(rates[i], overwrites(t, f, blocks, c.flushes))
			}
		}
		for i := range rates {
			slices.Sort(rates[i])
		}
		off, on := rates[0][3], rates[1][3]
		t.Logf("%s: %.0f writes/s (%.0f to %.0f) without, %.0f (%.0f to %.0f) with, %.1f times", c.name,
			off, rates[0][0], rates[0][6], on, rates[1][0], rates[1][6], on/off)
	}
	p.SetDelay(0)
}

// overwrites returns writes per second, over a second, the flush at its end included.
func overwrites(t *testing.T, f *rig.File, blocks int64, flushes int) float64 {
	t.Helper()
	buf := rig.Aligned(rig.BlockSize)
	begin, n := time.Now(), 0
	for ; time.Since(begin) < time.Second; n++ {
		b := int64(n) * 2654435761 % blocks
		rig.Stamp(buf, b, uint64(n+2))
		if err := f.WriteAt(buf, b*rig.BlockSize); err != nil {
			t.Fatal(err)
		}
		if n%flushes == flushes-1 {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return float64(n) / time.Since(begin).Seconds()
}
