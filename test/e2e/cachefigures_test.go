//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestCacheFigures measures what docs/cache.md claims, and prints a line for each: what
// a miss costs, reading again beside the store that keeps nothing, reading ahead and
// writing back through a delay. It asserts nothing, and runs with KVBFS_MEASURE=1 only
// (make bench-cache); KVBFS_PAIRS is how many pairs of runs.
func TestCacheFigures(t *testing.T) {
	if os.Getenv("KVBFS_MEASURE") == "" {
		t.Skip("a measurement: make bench-cache runs it")
	}
	rig.RequireFUSE(t)
	t.Run("miss", measureMisses)
	t.Run("again", measureAgain)
	t.Run("ahead", measureAhead)
	t.Run("write-back", measureWriteBack)
}

// figureRun is how long one run is.
const figureRun = 2 * time.Second

// compare measures two things in alternating pairs, and prints the medians, the median
// of the pairs' ratios of b to a, and its range; and by how much the first thing differs
// from itself, which is what the difference of two equal things may be. Runs of which
// the host took more than 2 % are repeated, a few times.
func compare(t *testing.T, what, unit string, a, b func() float64) {
	t.Helper()
	pairs := 11
	if s := os.Getenv("KVBFS_PAIRS"); s != "" {
		var err error
		if pairs, err = strconv.Atoi(s); err != nil || pairs < 1 {
			t.Fatalf("KVBFS_PAIRS: %q", s)
		}
	}
	noisy := 0
	run := func(f func() float64) (v float64) {
		for range 4 {
			stolen := steal(t)
			begin := time.Now()
			v = f()
			if stolen = steal(t) - stolen; stolen <= time.Since(begin)*time.Duration(runtime.NumCPU())/50 {
				return v
			}
		}
		noisy++
		return v
	}
	var as, bs, ratios []float64
	for i := range pairs {
		var x, y float64
		if i%2 == 0 {
			x = run(a)
			y = run(b)
		} else {
			y = run(b)
			x = run(a)
		}
		as, bs, ratios = append(as, x), append(bs, y), append(ratios, y/x)
	}
	for _, s := range [][]float64{as, bs, ratios} {
		slices.Sort(s)
	}
	mid := pairs / 2
	t.Logf("FIGURE %s: %.0f and %.0f %s, ratio %.3f (median of %d pairs, %.3f to %.3f; the first alone %.3f to %.3f of its median; %d runs were noisy)",
		what, as[mid], bs[mid], unit, ratios[mid], pairs, ratios[0], ratios[pairs-1], as[0]/as[mid], as[pairs-1]/as[mid], noisy)
}

// steal is the time that the host took from this machine since it booted.
func steal(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	must(t, err)
	f := strings.Fields(string(text))
	if len(f) < 9 || f[0] != "cpu" {
		t.Fatalf("/proc/stat begins with %.80q", text)
	}
	ticks, err := strconv.ParseInt(f[8], 10, 64)
	must(t, err)
	return time.Duration(ticks) * 10 * time.Millisecond
}

// figureVolume is one volume of a store in a mount of its own, and its image.
func figureVolume(t *testing.T, r *rig.Rig, store, name string, size int64, flags ...string) (image string) {
	t.Helper()
	if store != "null:" {
		r.Create(store, name, fmt.Sprint(size))
		flags = append(flags, "--only", name)
	}
	m := r.Mount(store, flags...)
	t.Cleanup(m.Umount)
	if store == "null:" {
		r.Run("truncate", "-s", fmt.Sprint(size), m.Image(name))
		return m.Image(name)
	}
	f := rig.Direct(t, m.Image(name))
	defer f.Close()
	overfill(t, f, size)
	return m.Image(name)
}

// randomReads returns how many blocks a second one thread reads, one at a time.
func randomReads(t *testing.T, f *rig.File, size int64) float64 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf, n := rig.Aligned(rig.BlockSize), 0
	begin := time.Now()
	for ; time.Since(begin) < figureRun; n++ {
		must(t, f.ReadAt(buf, rand.Int64N(size/rig.BlockSize)*rig.BlockSize))
	}
	return float64(n) / time.Since(begin).Seconds()
}

// deepReads is the same with 32 reads at a time of each of two processes, by fio.
func deepReads(t *testing.T, r *rig.Rig, image string) float64 {
	t.Helper()
	out := r.Run("fio", "--name=deep", "--filename="+image, "--rw=randread", "--bs=4k", "--iodepth=32", "--numjobs=2", "--ioengine=libaio",
		"--direct=1", "--time_based", fmt.Sprintf("--runtime=%.0f", figureRun.Seconds()), "--group_reporting", "--norandommap", "--minimal")
	f := strings.Split(strings.TrimSpace(out), ";")
	if len(f) < 8 || f[0] != "3" {
		t.Fatalf("fio --minimal printed %q", out)
	}
	iops, err := strconv.ParseFloat(f[7], 64)
	must(t, err)
	return iops
}

// sequentialReads returns MB/s of reads of 128 KiB, one at a time, from the beginning
// of an image that nobody has open: nothing of it is cached.
func sequentialReads(t *testing.T, image string, size int64) float64 {
	t.Helper()
	f, err := rig.OpenDirect(image)
	must(t, err)
	defer f.Close()
	buf := rig.Aligned(128 << 10)
	begin, at := time.Now(), int64(0)
	for ; at < size && time.Since(begin) < figureRun; at += int64(len(buf)) {
		must(t, f.ReadAt(buf, at))
	}
	return float64(at) / 1e6 / time.Since(begin).Seconds()
}

// measureMisses: random reads over 64 times the cache, with and without it.
func measureMisses(t *testing.T) {
	rig.Require(t, "fio")
	r := rig.New(t, 20*time.Minute)
	store := r.MemcachedTCP(1024).URL()
	const size = 256 << 20
	var images [2]string
	var files [2]*rig.File
	for i, flags := range [][]string{nil, {"--cache-size=4M"}} {
		images[i] = figureVolume(t, r, store, fmt.Sprintf("v%d", i), size, flags...)
		files[i] = rig.Direct(t, images[i]) // fio's coming and going forgets nothing
		defer files[i].Close()
		randomReads(t, files[i], size) // the cache is full then
	}
	compare(t, "a miss: 4 KiB random reads over 64 times the cache, QD1, without and with it", "IOPS",
		func() float64 { return randomReads(t, files[0], size) }, func() float64 { return randomReads(t, files[1], size) })
	compare(t, "a miss: the same, QD32 x 2", "IOPS",
		func() float64 { return deepReads(t, r, images[0]) }, func() float64 { return deepReads(t, r, images[1]) })
}

// measureAgain: reads of what is cached, beside the store that keeps nothing.
func measureAgain(t *testing.T) {
	r := rig.New(t, 10*time.Minute)
	const size = 64 << 20
	null := rig.Direct(t, figureVolume(t, r, "null:", "v", size))
	defer null.Close()
	image := figureVolume(t, r, r.MemcachedTCP(256).URL(), "w", size, "--cache-size=160M")
	cached := rig.Direct(t, image)
	defer cached.Close()
	buf := rig.Aligned(1 << 20)
	for range 2 {
		for at := int64(0); at < size; at += int64(len(buf)) {
			must(t, cached.ReadAt(buf, at))
		}
	}
	compare(t, "read again: 4 KiB, QD1, time of a read of the null store and of a cached one", "ns",
		func() float64 { return 1e9 / randomReads(t, null, size) }, func() float64 { return 1e9 / randomReads(t, cached, size) })
}

// measureAhead: reads in sequence, and random ones, through a delay of 1 ms, with and
// without a cache that reads ahead.
func measureAhead(t *testing.T) {
	r := rig.New(t, 10*time.Minute)
	p := rig.NewProxy(t, r.MemcachedTCP(768).Addr, 0)
	const size = 256 << 20
	off := figureVolume(t, r, p.URL(), "v0", size)
	on := figureVolume(t, r, p.URL(), "v1", size, "--cache-size=32M")
	p.SetDelay(time.Millisecond)
	defer p.SetDelay(0)
	compare(t, "read ahead: 128 KiB in sequence, QD1, through 1 ms, without and with it", "MB/s",
		func() float64 { return sequentialReads(t, off, size) }, func() float64 { return sequentialReads(t, on, size) })
	f, g := rig.Direct(t, off), rig.Direct(t, on)
	defer f.Close()
	defer g.Close()
	compare(t, "read ahead: 4 KiB random reads, QD1, through 1 ms, without and with it", "IOPS",
		func() float64 { return randomReads(t, f, size) }, func() float64 { return randomReads(t, g, size) })
}

// measureWriteBack: overwrites one at a time, a flush at the end of each run.
func measureWriteBack(t *testing.T) {
	r := rig.New(t, 10*time.Minute)
	p := rig.NewProxy(t, r.MemcachedTCP(256).Addr, 0)
	const blocks = 4096
	var files [2]*rig.File
	for i, flags := range [][]string{nil, {"--cache=writeback"}} {
		files[i] = rig.Direct(t, figureVolume(t, r, p.URL(), fmt.Sprintf("v%d", i), blocks*rig.BlockSize, flags...))
		defer files[i].Close()
		must(t, files[i].Sync())
	}
	p.SetDelay(time.Millisecond)
	defer p.SetDelay(0)
	compare(t, "write back: 4 KiB overwrites, QD1, through 1 ms, without and with it", "IOPS",
		func() float64 { return overwrites(t, files[0], blocks, 1<<30) }, func() float64 { return overwrites(t, files[1], blocks, 1<<30) })
}
