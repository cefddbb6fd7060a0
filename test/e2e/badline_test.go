//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// badLines are what a wire to a memcached can be like (RELIABILITY rows 11 and 14).
var badLines = map[string]rig.Line{
	"resets":  {ResetIn: 150_000},
	"cuts":    {ResetIn: 60_000, Slice: 3000},
	"slices":  {Slice: 40},
	"latency": {Delay: 20 * time.Millisecond},
	"slow":    {Rate: 1 << 20},
	"garbage": {Garbage: 300_000},
}

// TestBadLine: over a wire that is reset, cut, sliced, slow, or answers nonsense, no
// request fails, nothing is lost or done twice, and memory stays bounded.
func TestBadLine(t *testing.T) {
	rig.RequireFUSE(t)
	seed := rig.Seed(t)
	for name, line := range badLines {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, 2*time.Minute)
			srv := r.MemcachedTCP(256)
			badLine(t, r, srv.Engine(), "v", line, seed)
		})
	}
}

func badLine(t *testing.T, r *rig.Rig, e rig.Engine, v string, line rig.Line, seed uint64) {
	wire := rig.NewChaos(t, e.Servers()[0], line, seed)
	wire.Calm() // a mount that cannot look at its server does not begin, and says so
	r.Create(e.URL(), v, "64M")
	// The pool is reached under another name, so what is remembered of it is not.
	m := r.Mount(e.Kind() + "://" + wire.Addr)
	f := rig.Direct(t, m.Image(v))
	wire.Rage()
	before := rss(t, m.PID())
	writes := versions(t, f, seed, writesOver(line))
	if line.ResetIn+line.Garbage > 0 && wire.Faults() < 3 {
		t.Errorf("only %d connections were ended: no test", wire.Faults())
	}
	if grown := rss(t, m.PID()) - before; grown > 256<<20 {
		t.Errorf("the daemon's memory grew by %s", rig.Size(grown))
	}
	t.Logf("%d writes, %d connections ended in the middle", writes, wire.Faults())
	wire.Calm()
	f.Close()
	m.Umount()
}

// badLineShort is TestBadLine on one server that is reached by one address, with resets
// in the middle of small pieces. What nonsense does, which is of the protocol,
// redis.TestGarbage has.
func badLineShort(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	badLine(t, r, e, v, badLines["cuts"], rig.Seed(t))
}

func writesOver(line rig.Line) int {
	if line.Rate > 0 || line.Delay > 0 {
		return 300
	}
	return 1500
}

// versions lets 8 writers write n versions, each to blocks of its own, with reads
// in between, and checks all of them at the end. It returns how many were written.
func versions(t *testing.T, f *rig.File, seed uint64, n int) int {
	t.Helper()
	must(t, f.Sync()) // with write-back nothing is deferred before
	const writers, blocks = 8, 64
	final := make([]uint64, writers*blocks)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			got, want := rig.Aligned(rig.BlockSize), rig.Aligned(rig.BlockSize)
			for i := range n / writers {
				block := int64(rng.IntN(blocks)*writers + w)
				if rng.IntN(3) == 0 {
					rig.Stamp(want, block, final[block])
					if err := f.ReadAt(got, block*rig.BlockSize); err != nil || string(got) != string(want) {
						t.Errorf("block %d: %v, or not version %d", block, err, final[block])
						return
					}
					continue
				}
				rig.Stamp(want, block, uint64(i+1))
				if err := f.WriteAt(want, block*rig.BlockSize); err != nil {
					t.Errorf("block %d: %v", block, err)
					return
				}
				final[block] = uint64(i + 1)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return 0
	}
	if err := f.Sync(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	got, want := rig.Aligned(rig.BlockSize), rig.Aligned(rig.BlockSize)
	written := 0
	for block, v := range final {
		rig.Stamp(want, int64(block), v)
		if err := f.ReadAt(got, int64(block)*rig.BlockSize); err != nil || string(got) != string(want) {
			t.Fatalf("block %d at the end: %v, or not version %d", block, err, v)
		}
		if v > 0 {
			written++
		}
	}
	return written
}

// rss is a process's resident memory in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	t.Fatalf("no VmRSS of process %d", pid)
	return 0
}

// TestGhostWrite: a write that was given up while the server was stopped is executed
// late or not at all, but never after a later one was acknowledged (row 13).
func TestGhostWrite(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 3*time.Minute)
	ghostWrite(t, r, r.MemcachedTCP(128).Engine(), "v")
}

func ghostWrite(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	fill(t, f, 8, 1)
	r.Kvbfs("volume", "set", v, "--io-timeout", "500ms", "--store", e.URL()) // a pause of the machine is no fault of the fill
	got, want, ghost := rig.Aligned(rig.BlockSize), rig.Aligned(rig.BlockSize), rig.Aligned(rig.BlockSize)
	given := 0
	for round := range uint64(8) {
		block := int64(round)
		e.Stop()
		rig.Stamp(ghost, block, 100+round)
		err := f.WriteAt(ghost, block*rig.BlockSize)
		if err == nil && r.Defers() {
			err = f.Sync() // it is this one that sends it, and gives it up
		}
		if err != nil {
			given++
		}
		e.Continue()
		rig.Stamp(want, block, 200+round)
		rig.Eventually(t, 30*time.Second, "a later write succeeds", func() bool { return f.WriteAt(want, block*rig.BlockSize) == nil })
		for range 50 {
			// On a loaded machine a read may take longer than it is given.
			rig.Eventually(t, 30*time.Second, "a read succeeds", func() bool { return f.ReadAt(got, block*rig.BlockSize) == nil })
			if string(got) != string(want) {
				t.Fatalf("round %d: another content than was written last; the ghost is back: %v", round, string(got) == string(ghost))
			}
			time.Sleep(2 * time.Millisecond)
		}
		if r.Defers() { // again, from here on
			rig.Eventually(t, 30*time.Second, "a flush succeeds", func() bool { return f.Sync() == nil })
		}
	}
	if given < 4 {
		t.Errorf("only %d of 8 writes were given up: no ghosts", given)
	}
	f.Close()
	m.Umount()
}

// TestDiscardStorm: discards of a region while it is written to: each block is
// zeros, or what was written last (row 19).
func TestDiscardStorm(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	discardStorm(t, r, r.Memcached(128).Engine(), "v")
}

func discardStorm(t *testing.T, r *rig.Rig, e rig.Engine, v string) {
	r.Create(e.URL(), v, "64M")
	m := r.Mount(e.URL())
	f := rig.Direct(t, m.Image(v))
	must(t, f.Sync()) // with write-back nothing is deferred before
	seed := rig.Seed(t)
	const writers, blocks = 4, 256
	stop := make(chan struct{})
	var discards sync.WaitGroup
	punched := 0
	discards.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 99))
		for {
			select {
			case <-stop:
				return
			default:
			}
			from := rng.Int64N(blocks)
			n := 1 + rng.Int64N(blocks-from)
			var err error
			if rng.IntN(2) == 0 {
				err = f.Punch(from*rig.BlockSize, n*rig.BlockSize)
			} else {
				err = f.Zero(from*rig.BlockSize, n*rig.BlockSize)
			}
			if err != nil {
				t.Errorf("discard: %v", err)
				return
			}
			punched++
		}
	})
	last := make([]uint64, blocks)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			buf := rig.Aligned(rig.BlockSize)
			for i := range 1000 {
				block := int64(rng.IntN(blocks/writers)*writers + w)
				rig.Stamp(buf, block, uint64(i+1))
				if err := f.WriteAt(buf, block*rig.BlockSize); err != nil {
					t.Errorf("block %d: %v", block, err)
					return
				}
				last[block] = uint64(i + 1)
			}
		})
	}
	wg.Wait()
	close(stop)
	discards.Wait()
	if punched < 20 {
		t.Errorf("only %d discards: no storm", punched)
	}
	look := func(when string) {
		got, want := rig.Aligned(rig.BlockSize), rig.Aligned(rig.BlockSize)
		zeros, kept := 0, 0
		for block, v := range last {
			if err := f.ReadAt(got, int64(block)*rig.BlockSize); err != nil {
				t.Fatalf("%s: block %d: %v", when, block, err)
			}
			rig.Stamp(want, int64(block), v)
			switch string(got) {
			case string(want):
				kept++
			case string(make([]byte, rig.BlockSize)):
				zeros++
			default:
				t.Errorf("%s: block %d is neither zeros nor version %d", when, block, v)
			}
		}
		t.Logf("%s: %d blocks kept, %d zeros, after %d discards", when, kept, zeros, punched)
	}
	look("at the end")
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m.Umount()
	m.Mount(e.URL())
	f = rig.Direct(t, m.Image(v))
	look("mounted again")
	f.Close()
	m.Umount()
}
