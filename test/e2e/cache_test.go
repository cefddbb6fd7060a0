//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// cacheStats is what .stats and status tell of a cache.
type cacheStats struct {
	Used      int64  `json:"used_bytes"`
	Hits      uint64 `json:"hits"`
	Misses    uint64 `json:"misses"`
	Evicted   uint64 `json:"evicted"`
	ReadAhead struct {
		Read uint64 `json:"read"`
		Used uint64 `json:"used"`
	} `json:"read_ahead"`
}

func statsOf(t *testing.T, m *rig.Mount) cacheStats {
	t.Helper()
	text, err := os.ReadFile(m.Image(".stats"))
	if err != nil {
		t.Fatal(err)
	}
	var out struct{ Cache *cacheStats }
	if err := json.Unmarshal(text, &out); err != nil || out.Cache == nil {
		t.Fatalf(".stats tells nothing of the cache (%v): %s", err, text)
	}
	return *out.Cache
}

// eachTransport runs f for /dev/fuse and, where the kernel has it, io_uring.
func eachTransport(t *testing.T, f func(t *testing.T, transport string)) {
	t.Run("dev", func(t *testing.T) { f(t, "dev") })
	t.Run("uring", func(t *testing.T) {
		if _, err := os.Stat(enableURing); err != nil {
			t.Skip("this kernel has no FUSE over io_uring (Linux 6.14)")
		}
		f(t, "uring")
	})
}

// With a cache, what is read again comes from memory; what is written, through
// any worker, is read; a block that was found lost is EIO, not memory; and .stats
// and status tell.
func TestCache(t *testing.T) {
	rig.RequireFUSE(t)
	eachTransport(t, func(t *testing.T, transport string) {
		r := rig.New(t, 2*time.Minute)
		r.Transport = transport
		s := r.Memcached(256)
		store := s.URL()
		r.Create(store, "v", "64M")
		m := r.Mount(store, "--cache-size=32M")
		defer m.Umount()
		defer keepOpen(t, m)()
		const size = 8 << 20
		content := cachePattern(size, 1)
		writeImage(t, m, 0, content)
		sameImage(t, m, 0, content)
		// All but a few: a pass leaves out a block if two workers wanted a place in one
		// set at one moment, and if its reader waited so long for it to be read ahead
		// that it read it itself, past the place that was kept. What is being read ahead
		// at this moment is not counted yet, either. A later pass takes all of it in.
		const nearly = size * 99 / 100
		var before, after cacheStats
		rig.Eventually(t, time.Minute, "a pass is answered by the cache", func() bool {
			before = statsOf(t, m)
			sameImage(t, m, 0, content)
			after = statsOf(t, m)
			return after.Hits-before.Hits >= nearly/4096 && after.Misses-before.Misses <= (size-nearly)/4096
		})
		rig.Eventually(t, time.Minute, "all that was read is cached", func() bool {
			sameImage(t, m, 0, content)
			after = statsOf(t, m)
			// Of 2048 blocks in 500 sets more than 16 fall into one set once in some thousand
			// volumes, as their random ids have it: then one goes for the other.
			return after.Used == size || after.Evicted > 0
		})
		if after.Used > size {
			t.Errorf("%d bytes are cached of %d that were read: %+v", after.Used, size, after)
		}
		// Every process is on a CPU and worker of its own liking.
		for round := range byte(8) {
			part := cachePattern(1<<20, 2+round)
			writeImage(t, m, int64(round)<<20, part)
			copy(content[int(round)<<20:], part)
		}
		sameImage(t, m, 0, content)
		cacheOfLost(t, r, s, m, store)
		out := r.Kvbfs("status", m.Dir)
		if !strings.Contains(out, "cache") || !strings.Contains(out, "blocks hit") {
			t.Errorf("status tells nothing of the cache:\n%s", out)
		}
	})
}

// cacheOfLost loses block 3, which is cached, and has the daemon find it out.
func cacheOfLost(t *testing.T, r *rig.Rig, s *rig.Memcached, m *rig.Mount, store string) {
	t.Helper()
	const off = 3 * rig.BlockSize
	before := statsOf(t, m).Hits
	rig.Eventually(t, 20*time.Second, "block 3 is cached", func() bool {
		must(t, readImage(m, off, make([]byte, rig.BlockSize)))
		return statsOf(t, m).Hits > before
	})
	if p := r.Where(store, "v", off); !p.Stored || !s.Delete(p.Key) {
		t.Fatalf("block 3 is not stored: %+v", p)
	}
	if p := r.Where(store, "v", off); p.Stored {
		t.Error("where was answered from memory, not from the store")
	}
	if err := readImage(m, off, make([]byte, rig.BlockSize)); !errors.Is(err, syscall.EIO) {
		t.Errorf("a block that was found lost: %v, want EIO", err)
	}
}

// keepOpen holds the image open: what is cached of a volume is forgotten when it
// is opened anew.
func keepOpen(t *testing.T, m *rig.Mount) (done func()) {
	t.Helper()
	f, err := os.OpenFile(m.Image("v"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return func() { f.Close() }
}

// A reader in sequence behind a slow wire is served from what was read ahead, and
// gets what was written.
func TestReadAhead(t *testing.T) {
	rig.RequireFUSE(t)
	eachTransport(t, func(t *testing.T, transport string) {
		r := rig.New(t, 2*time.Minute)
		r.Transport = transport
		p := rig.NewProxy(t, r.MemcachedTCP(256).Addr, 0)
		r.Create(p.URL(), "v", "64M")
		m := r.Mount(p.URL(), "--cache-size=32M")
		defer m.Umount()
		defer keepOpen(t, m)()
		content := cachePattern(32<<20, 9)
		writeImage(t, m, 0, content)
		p.SetDelay(2 * time.Millisecond)
		sameImage(t, m, 0, content)
		st := statsOf(t, m)
		// How many is a matter of time: nothing is read ahead of a server that was silent
		// for some moments, and nobody waits long for what is.
		if st.ReadAhead.Used < 256 {
			t.Errorf("of 8192 blocks in sequence only %d were read ahead and used: %+v", st.ReadAhead.Used, st)
		}
	})
}

func cachePattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12)*31 ^ byte(i)*7 ^ seed | 1
	}
	return b
}

func writeImage(t *testing.T, m *rig.Mount, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(m.Image("v"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func readImage(m *rig.Mount, off int64, data []byte) error {
	f, err := os.Open(m.Image("v"))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(data, off)
	return err
}

// sameImage reads in pieces of 128 KiB, one after the other.
func sameImage(t *testing.T, m *rig.Mount, off int64, want []byte) {
	t.Helper()
	f, err := os.Open(m.Image("v"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	piece := make([]byte, 128<<10)
	for at := 0; at < len(want); at += len(piece) {
		if _, err := f.ReadAt(piece, off+int64(at)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(piece, want[at:at+len(piece)]) {
			t.Fatalf("what is read at %d is not what was written", off+int64(at))
		}
	}
}
