//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// TestMirror keeps an image, over a wire that is reset, in lock-step with a plain file
// of the local file system: writers with a part of their own each do the same to both,
// and read both. In the end, and after mounting again, cmp(1) finds no difference.
// KVBFS_MIRROR_OPS is how much each writer does.
func TestMirror(t *testing.T) {
	rig.RequireFUSE(t)
	rig.Require(t, "cmp")
	ops := 400
	if s := os.Getenv("KVBFS_MIRROR_OPS"); s != "" {
		var err error
		if ops, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KVBFS_MIRROR_OPS: %v", err)
		}
	}
	const writers, part = 4, 6 << 20
	r := rig.New(t, 3*time.Minute+time.Duration(ops)*20*time.Millisecond)
	srv := r.MemcachedTCP(128)
	seed := rig.Seed(t)
	wire := rig.NewChaos(t, srv.Addr, rig.Line{ResetIn: 200_000}, seed)
	wire.Calm() // a mount or an open that cannot ask its server fails, and says so
	r.Create(srv.URL(), "v", fmt.Sprint(writers*part))
	m := r.Mount(wire.URL())
	plain := r.Path("plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(plain, writers*part); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	written := make([]int64, writers)
	for i := range writers {
		w := &mirror{rng: rand.New(rand.NewPCG(seed, uint64(20+i))), base: int64(i) * part, size: part, unit: 1}
		open := rig.OpenPlain
		if i%2 == 0 { // past the page cache, and aligned
			open, w.unit = rig.OpenDirect, rig.BlockSize
		}
		var err error
		if w.image, err = open(m.Image("v")); err != nil {
			t.Fatal(err)
		}
		defer w.image.Close()
		if w.plain, err = rig.OpenPlain(plain); err != nil {
			t.Fatal(err)
		}
		defer w.plain.Close()
		wg.Go(func() {
			for n := range ops {
				if err := w.step(); err != nil {
					t.Errorf("writer %d, operation %d: %v", i, n, err)
					return
				}
			}
			written[i] = w.written
			w.image.Close() // the mount must not be in use in the end
		})
	}
	wire.Rage()
	wg.Wait()
	if t.Failed() {
		return
	}
	if wire.Faults() == 0 {
		t.Error("no connection was reset: less of a test")
	}
	wire.Calm()
	r.Run("cmp", m.Image("v"), plain)
	m.Umount()
	again := r.Mount(wire.URL())
	r.Run("cmp", again.Image("v"), plain)
	again.Umount()
	total := int64(0)
	for _, n := range written {
		total += n
	}
	t.Logf("%d operations, %s written, %d connections reset: no difference", writers*ops, rig.Size(total), wire.Faults())
}

// mirror is one writer with its part of two files.
type mirror struct {
	rng          *rand.Rand
	image, plain *rig.File
	base, size   int64
	unit         int64 // of offsets and lengths
	written      int64
}

// step does one operation on both files.
func (w *mirror) step() error {
	off := w.rng.Int64N(w.size/w.unit) * w.unit
	n := 1 + w.rng.Int64N(int64(512)<<w.rng.IntN(9)) // up to 128 KiB, small ones more often
	n = min((n+w.unit-1)/w.unit*w.unit, w.size-off)
	at := w.base + off
	both := func(what string, f func(*rig.File) error) error {
		for _, file := range []*rig.File{w.image, w.plain} {
			if err := f(file); err != nil {
				return fmt.Errorf("%s of %d bytes at %d of %s: %w", what, n, at, file.Path, err)
			}
		}
		return nil
	}
	switch k := w.rng.IntN(20); {
	case k < 9:
		b := rig.Aligned(int(n))
		for i := range b {
			b[i] = byte(w.rng.Uint32())
		}
		if k == 0 {
			clear(b)
		}
		w.written += n
		return both("write", func(f *rig.File) error { return f.WriteAt(b, at) })
	case k < 11:
		return both("hole", func(f *rig.File) error { return f.Punch(at, n) })
	case k < 12:
		return both("zeroing", func(f *rig.File) error { return f.Zero(at, n) })
	case k < 13:
		return both("fsync", (*rig.File).Sync)
	}
	got := map[*rig.File][]byte{w.image: rig.Aligned(int(n)), w.plain: rig.Aligned(int(n))}
	if err := both("read", func(f *rig.File) error { return f.ReadAt(got[f], at) }); err != nil {
		return err
	}
	if !bytes.Equal(got[w.image], got[w.plain]) {
		return fmt.Errorf("%d bytes at %d differ", n, at)
	}
	return nil
}
