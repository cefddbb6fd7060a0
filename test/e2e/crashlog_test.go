//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/kvbfs/kvbfs/test/rig"
)

// durable is a file that was made stable, and when: any later crash must keep it.
type durable struct {
	name     string
	content  []byte
	from, to int // positions in the log between which nothing may be missing of it
}

// TestCrashLog records what memcached acknowledged under a file system's load, and
// then lets the machine crash after ever more of it: at flush points, anywhere, and
// with only some of what was not flushed. Each time the journal is replayed, the
// file system is clean, and what was synced before is there.
//
// KVBFS_CRASHLOG_PREFIXES is how many crashes per file system.
func TestCrashLog(t *testing.T) { crashLog(t, "") }

// TestCrashLogWriteBack is the same with write-back, which stores what was
// acknowledged in an order of its own, up to the next flush. The file system is made
// on a device that is full of something else: all that it writes are overwrites, so
// all of it is deferred, and what is lost shows as what was there before.
func TestCrashLogWriteBack(t *testing.T) { crashLog(t, "writeback") }

func crashLog(t *testing.T, cache string) {
	rig.RequireLoop(t)
	prefixes := 12
	if cache != "" {
		prefixes = 4 // each loads a server with a full device
	}
	if s := os.Getenv("KVBFS_CRASHLOG_PREFIXES"); s != "" {
		var err error
		if prefixes, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KVBFS_CRASHLOG_PREFIXES: %v", err)
		}
	}
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			rig.Require(t, "mkfs."+fs)
			rnd := rig.Rand(t)
			log, files, begin, host := record(t, fs, cache, rnd)
			points := flushPoints(log, begin)
			if len(points) < 10 || len(files) < 20 {
				t.Fatalf("only %d flush points and %d files: no load", len(points), len(files))
			}
			t.Logf("%s: %d changes, %d flush points, %d files", fs, len(log), len(points), len(files))
			for i := range prefixes {
				seed := rnd.Uint64()
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					rnd := rand.New(rand.NewPCG(seed, 0))
					// A third of the crashes each: at a flush point, anywhere, and anywhere
					// with some changes since the last flush left out.
					at := points[rnd.IntN(len(points))]
					if i%3 > 0 {
						at = begin + rnd.IntN(len(log)-begin+1)
					}
					kept := log[:at]
					if i%3 == 2 {
						kept = dropSome(kept, rnd)
					}
					t.Logf("crash after %d changes (%d of them kept)", at, len(kept))
					crashAt(t, fs, host, kept, at, files)
				})
			}
		})
	}
}

// record runs a load on a file system and returns the log, the files that were
// synced, the position from which on the file system exists, and who the machine is.
func record(t *testing.T, fs, cache string, rnd *rand.Rand) (log []rig.Change, files []durable, begin int, host []byte) {
	t.Helper()
	r := rig.New(t, 4*time.Minute)
	if cache != "" {
		r.CacheMode = cache
	}
	srv := r.Memcached(512)
	rec := r.Record(srv)
	size := int64(320 << 20)
	if cache != "" {
		size = 64 << 20 // all of which is in the log, and in each server
	}
	r.Create(rec.URL(), "v", fmt.Sprint(size))
	var m *rig.Mount
	var dev string
	if cache == "" {
		m = r.Mount(rec.URL())
		dev = m.Attach("v")
		r.Mkfs(fs, dev)
	} else {
		// Some of what is dirty is stored by its age, and some as there is much of it.
		m = r.Mount(rec.URL(), "--max-dirty=1M", "--max-dirty-age="+[]string{"10ms", "1s"}[rnd.IntN(2)])
		// What is provisioned while it is open stays there when zeros are written to it,
		// but not when it is zeroed without data, as mkfs does to the log.
		f := rig.Direct(t, m.Image("v"))
		provision := []string{"fallocate", "-l", fmt.Sprint(size), m.Image("v")}
		r.Run(provision...)
		overfill(t, f, size)
		dev = m.Attach("v")
		f.Close()
		r.MkfsOver(fs, dev)
		r.Run(provision...)
	}
	dir := r.MountFS(dev, fs)
	r.Run("sync", "-f", dir)
	begin = rec.Position()
	for i := range 60 {
		f := durable{name: fmt.Sprintf("f%d", i), content: make([]byte, 1+rnd.IntN(60_000))}
		for k := range f.content {
			f.content[k] = byte(rnd.Uint32())
		}
		path := filepath.Join(dir, f.name)
		must(t, os.WriteFile(path+".new", f.content, 0o644))
		syncFile(t, path+".new")
		must(t, os.Rename(path+".new", path))
		if i%4 == 3 { // some that are never synced: noise
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("noise%d", i)), f.content, 0o644))
			must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d", i), "e"), 0o755))
		}
		syncFile(t, dir)
		f.from, f.to = rec.Position(), -1
		files = append(files, f)
		if i%7 == 6 {
			victim := &files[rnd.IntN(len(files))]
			if victim.to < 0 {
				victim.to = rec.Position()
				must(t, os.Remove(filepath.Join(dir, victim.name)))
			}
		}
	}
	r.UmountFS(dir)
	// Asked while it is open: else nobody knows.
	if got := allocated(t, m.Image("v")); cache != "" && got != size {
		t.Errorf("%d bytes of %d are allocated: not all writes were overwrites", got, size)
	}
	r.Detach(dev)
	if cache != "" {
		// Writes go through before the first flush, and where no room is left.
		if st := writeBackStats(t, m); st.Deferred < 500 {
			t.Errorf("not much was deferred, so it is not much of a test: %+v", st)
		} else {
			t.Logf("%s: %+v", fs, st)
		}
	}
	m.Umount()
	host, err := os.ReadFile(filepath.Join(r.RuntimeDir(), "host-id"))
	must(t, err)
	return rec.Log(), files, begin, host
}

// overfill writes the same to each block of an image.
func overfill(t *testing.T, f *rig.File, size int64) {
	t.Helper()
	buf := rig.Aligned(1 << 20)
	for i := range buf {
		buf[i] = 0xa5
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		must(t, f.WriteAt(buf, off))
	}
	must(t, f.Sync())
}

// allocated is what of a file is not a hole, in bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

// syncFile makes a file or directory stable.
func syncFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
}

// flushPoints are the positions at which flushes were over.
func flushPoints(log []rig.Change, begin int) (points []int) {
	for i := begin; i < len(log); i++ {
		if log[i].Flush {
			points = append(points, i+1)
		}
	}
	return points
}

// dropSome leaves out a random part of the blocks that came after the last flush
// and the last page of the map: they were in flight.
func dropSome(log []rig.Change, rnd *rand.Rand) []rig.Change {
	last := len(log)
	for last > 0 && !log[last-1].Flush && !log[last-1].Map {
		last--
	}
	kept := append([]rig.Change(nil), log[:last]...)
	for _, c := range log[last:] {
		if c.Record || rnd.IntN(2) == 0 {
			kept = append(kept, c)
		}
	}
	return kept
}

// crashAt gives the machine, without its local state, the server as it was, and looks
// at what is there. It is known by its id, or the lease would be waited for.
func crashAt(t *testing.T, fs string, host []byte, log []rig.Change, at int, files []durable) {
	t.Helper()
	r := rig.New(t, 2*time.Minute)
	must(t, os.WriteFile(filepath.Join(r.RuntimeDir(), "host-id"), host, 0o600))
	srv := r.Memcached(512)
	srv.Load(log)
	m := r.Mount(srv.URL())
	dev := m.Attach("v")
	dir := r.MountFS(dev, fs) // replays the journal
	seen := 0
	for _, f := range files {
		if f.from > at || f.to >= 0 && f.to <= at {
			continue // not yet, or being removed
		}
		seen++
		got, err := os.ReadFile(filepath.Join(dir, f.name))
		if err != nil || !bytes.Equal(got, f.content) {
			t.Errorf("%s was synced before the crash: %v, %d of %d bytes, equal %v", f.name, err, len(got), len(f.content), bytes.Equal(got, f.content))
		}
	}
	r.UmountFS(dir)
	r.Fsck(fs, dev)
	r.Detach(dev)
	m.Umount()
	t.Logf("%d files that were synced are there", seen)
}
