//go:build e2e

package e2e

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestParallel: what is in flight together travels together. The wire gives answers
// back only when no more come; 32 reads at once do not take 32 such rounds.
func TestParallel(t *testing.T) {
	rig.RequireLoop(t)
	const reads = 32
	r := rig.New(t, 2*time.Minute)
	srv := r.MemcachedTCP(256)
	wire := rig.NewProxy(t, srv.Addr, 0)
	r.Create(wire.URL(), "v", "256M")
	m := r.Mount(wire.URL())
	dev := m.Attach("v")
	f := rig.Direct(t, dev)
	buf := rig.Aligned(rig.BlockSize)
	const apart = 2 << 20 // no two reads can be merged into one request
	for i := range int64(reads) {
		rig.Stamp(buf, i, 1)
		if err := f.WriteAt(buf, i*apart); err != nil {
			t.Fatal(err)
		}
	}
	// Each reader blocks in a system call; give each a processor, so that the
	// runtime does not hold them back.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(reads + 8))
	wire.SetDelay(20 * time.Millisecond)
	t.Logf("behind a wire of 20 ms: one read in %v, %d reads at once in %v", together(t, f, 1, apart), reads, together(t, f, reads, apart))
	wire.SetDelay(0)
	wire.Hold()
	done := make(chan time.Duration, 1)
	go func() { done <- together(t, f, reads, apart) }()
	rounds := 0
	for before := int64(0); ; {
		select {
		case <-done:
			t.Logf("%d reads took %d rounds over the wire", reads, rounds)
			if rounds > reads/2 {
				t.Error("they do not travel together")
			}
			wire.Release()
		case <-time.After(200 * time.Millisecond):
			// What was on its way has come, and waits for nothing but its answers.
			if held := wire.Held(); held != before || held == 0 {
				before = held
				continue
			}
			wire.Pass()
			before, rounds = 0, rounds+1
			continue
		}
		break
	}
	f.Close()
	r.Detach(dev)
	m.Umount()
}

// TestConnections: --workers and --connections say how many connections there
// are, each of which carries data.
func TestConnections(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, time.Minute)
	srv := r.MemcachedTCP(128)
	r.Create(srv.URL(), "v", "64M")
	count := func(args ...string) int64 {
		m := r.Mount(srv.URL(), args...)
		f := rig.Direct(t, m.Image("v"))
		fill(t, f, 64, 1)
		for range 20 {
			var wg sync.WaitGroup
			for i := range int64(64) {
				wg.Add(1)
				go func() {
					defer wg.Done()
					got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
					if err := f.ReadAt(got, i*rig.BlockSize); err != nil {
						t.Error(err)
					} else if rig.Stamp(want, i, 1); string(got) != string(want) {
						t.Errorf("block %d is not what was written", i)
					}
				}()
			}
			wg.Wait()
		}
		n := srv.Stat("curr_connections")
		f.Close()
		m.Umount()
		return n
	}
	few := count("--workers=1", "--connections=1")
	many := count("--workers=1", "--connections=8")
	t.Logf("connections at the server: %d with one per worker, %d with eight", few, many)
	// They are made when there is work for them.
	if many < few+3 {
		t.Errorf("--connections=8 makes %d connections, --connections=1 makes %d", many, few)
	}
}

func together(t *testing.T, f *rig.File, n int, apart int64) time.Duration {
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range int64(n) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			got, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
			if err := f.ReadAt(got, i*apart); err != nil {
				t.Error(err)
			}
			if rig.Stamp(want, i, 1); string(got) != string(want) {
				t.Errorf("block at %d is not what was written", i*apart)
			}
		}()
	}
	wg.Wait()
	return time.Since(begin)
}
