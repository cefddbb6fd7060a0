//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvbfs/kvbfs/kvstore/redis/redistest"
	"github.com/kvbfs/kvbfs/test/rig"
)

// deferredStats is what .stats tells of write-back.
type deferredStats struct {
	Dirty    int64  `json:"dirty_bytes"`
	Deferred uint64 `json:"deferred"`
	Merged   uint64 `json:"merged"`
	Stored   uint64 `json:"stored"`
	Failed   uint64 `json:"failed"`
}

func writeBackStats(t *testing.T, m *rig.Mount) deferredStats {
	t.Helper()
	text, err := os.ReadFile(m.Image(".stats"))
	if err != nil {
		t.Fatal(err)
	}
	var out struct {
		WriteBack *deferredStats `json:"write_back"`
	}
	if err := json.Unmarshal(text, &out); err != nil || out.WriteBack == nil {
		t.Fatalf(".stats tells nothing of write-back (%v): %s", err, text)
	}
	return *out.WriteBack
}

// eachNetworkStore runs f on the stores that have write-back.
func eachNetworkStore(t *testing.T, f func(t *testing.T, r *rig.Rig, store string)) {
	for name, url := range map[string]func(t *testing.T, r *rig.Rig) string{
		"memcached": func(t *testing.T, r *rig.Rig) string { return r.Memcached(256).URL() },
		"redis":     func(t *testing.T, r *rig.Rig) string { return redistest.Start(t, redistest.MemoryMB(256)).URL() },
	} {
		t.Run(name, func(t *testing.T) {
			r := rig.New(t, 3*time.Minute)
			r.CacheMode = "writeback"
			f(t, r, url(t, r))
		})
	}
}

// late keeps what is written dirty until somebody flushes.
const late = "--max-dirty-age=1h"

// writeVersion overwrites blocks without a flush.
func writeVersion(t *testing.T, f *rig.File, blocks int64, version uint64) {
	t.Helper()
	buf := rig.Aligned(rig.BlockSize)
	for i := range blocks {
		rig.Stamp(buf, i, version)
		if err := f.WriteAt(buf, i*rig.BlockSize); err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
	}
}

// readVersion checks blocks.
func readVersion(t *testing.T, f *rig.File, blocks int64, version uint64) {
	t.Helper()
	buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
	for i := range blocks {
		rig.Stamp(want, i, version)
		if err := f.ReadAt(buf, i*rig.BlockSize); err != nil || !bytes.Equal(buf, want) {
			t.Fatalf("block %d is not version %d (%v)", i, version, err)
		}
	}
}

// TestWriteBack: overwrites are deferred from the first flush on, read as written,
// stored by a flush, by age and by the end of the mount; .stats and status tell.
func TestWriteBack(t *testing.T) {
	rig.RequireFUSE(t)
	eachNetworkStore(t, func(t *testing.T, r *rig.Rig, store string) {
		r.Create(store, "v", "64M")
		m := r.Mount(store, late)
		f := rig.Direct(t, m.Image("v"))
		const blocks = 64
		writeVersion(t, f, blocks, 1)
		writeVersion(t, f, blocks, 2)
		if st := writeBackStats(t, m); st.Deferred != 0 {
			t.Errorf("before the first flush: %+v", st)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		writeVersion(t, f, blocks, 3)
		if st := writeBackStats(t, m); st.Deferred != blocks || st.Dirty != blocks*rig.BlockSize {
			t.Errorf("after the first flush: %+v", st)
		}
		readVersion(t, f, blocks, 3)
		if out := r.Kvbfs("status", m.Dir); !strings.Contains(out, "write-back") || !strings.Contains(out, "256K") {
			t.Errorf("status tells nothing of what is dirty:\n%s", out)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if st := writeBackStats(t, m); st.Dirty != 0 || st.Stored != blocks {
			t.Errorf("after a flush: %+v", st)
		}
		writeVersion(t, f, blocks, 4)
		f.Close()
		m.Umount()
		m.Mount(store, "--max-dirty-age=10ms")
		f = rig.Direct(t, m.Image("v"))
		readVersion(t, f, blocks, 4)
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		writeVersion(t, f, blocks, 5)
		rig.Eventually(t, 30*time.Second, "all is stored without a flush", func() bool {
			st := writeBackStats(t, m)
			return st.Deferred == blocks && st.Dirty == 0
		})
		writeVersion(t, f, blocks, 6)
		f.Close()
		if err := syscall.Kill(m.PID(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		rig.Eventually(t, 30*time.Second, "the daemon is gone", func() bool { return !rig.Alive(m.PID()) })
		m.Mount(store)
		f = rig.Direct(t, m.Image("v"))
		readVersion(t, f, blocks, 6)
		f.Close()
		m.Umount()
	})
}

// TestWriteBackCrash kills the daemon in mid-write, again and again: each block is
// whole, not older than the last flush that covers it, and not newer than what was sent.
func TestWriteBackCrash(t *testing.T) {
	rig.RequireFUSE(t)
	eachNetworkStore(t, func(t *testing.T, r *rig.Rig, store string) {
		const writers, each = 8, 128
		rnd := rig.Rand(t)
		r.Create(store, "v", "64M")
		m := r.Mount(store, "--max-dirty-age=50ms")
		f := rig.Direct(t, m.Image("v"))
		fill(t, f, writers*each, 1)
		var flushed, sent [writers * each]uint64
		for i := range flushed {
			flushed[i], sent[i] = 1, 1
		}
		writeVersion(t, f, writers*each, 1)
		if st := writeBackStats(t, m); st.Deferred == 0 {
			t.Errorf("no write is deferred, which makes it not much of a test: %+v", st)
		}
		next, behind := uint64(1), 0
		for range cycles(t) {
			time.AfterFunc(time.Duration(100+rnd.IntN(300))*time.Millisecond, m.KillOnly)
			var wg sync.WaitGroup
			seed := rnd.Uint64()
			for w := range int64(writers) {
				wg.Go(func() {
					buf := rig.Aligned(rig.BlockSize)
					for n := uint64(0); ; n++ {
						b := int64((seed+n*n*31+n)%each)*writers + w
						sent[b] = next + n + 1
						rig.Stamp(buf, b, sent[b])
						if f.WriteAt(buf, b*rig.BlockSize) != nil {
							return
						}
						if n%50 != 49 {
							continue
						}
						if f.Sync() != nil {
							return
						}
						for i := w; i < writers*each; i += writers {
							flushed[i] = sent[i]
						}
					}
				})
			}
			wg.Wait()
			f.Close()
			rig.Eventually(t, 10*time.Second, "the daemon is gone", func() bool { return !rig.Alive(m.PID()) })
			r.Try("umount", "-l", m.Dir)
			m.Mount(store, "--max-dirty-age=50ms")
			f = rig.Direct(t, m.Image("v"))
			buf, want := rig.Aligned(rig.BlockSize), make([]byte, rig.BlockSize)
			for b := range int64(writers * each) {
				if err := f.ReadAt(buf, b*rig.BlockSize); err != nil {
					t.Fatalf("block %d: %v", b, err)
				}
				got := uint64(buf[8]) | uint64(buf[9])<<8 | uint64(buf[10])<<16 | uint64(buf[11])<<24
				if rig.Stamp(want, b, got); !bytes.Equal(buf, want) || got < flushed[b] || got > sent[b] {
					t.Fatalf("block %d has version %d: flushed was %d, sent was %d, whole %v", b, got, flushed[b], sent[b], bytes.Equal(buf, want))
				}
				if got < sent[b] {
					behind++
				}
				next = max(next, sent[b])
				flushed[b], sent[b] = got, got
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
		m.Umount()
		t.Logf("%d kills; %d blocks lost what was not flushed", cycles(t), behind)
	})
}

// TestWriteBackOutage: while a server is stopped, what fits is acknowledged and read,
// and a flush waits; when it goes on nothing is lost. With --io-timeout the flush gives
// EIO, and the next one stores all.
func TestWriteBackOutage(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	r.CacheMode = "writeback"
	srv := r.Memcached(128)
	store := srv.URL()
	r.Create(store, "v", "64M")
	m := r.Mount(store, late)
	f := rig.Direct(t, m.Image("v"))
	const blocks = 64
	fill(t, f, blocks, 1)
	srv.Stop()
	writeVersion(t, f, blocks, 2)
	readVersion(t, f, blocks, 2)
	flushed := make(chan error, 1)
	go func() { flushed <- f.Sync() }()
	select {
	case err := <-flushed:
		t.Errorf("a flush ended while the server is stopped: %v", err)
	case <-time.After(time.Second):
	}
	srv.Continue()
	if err := <-flushed; err != nil {
		t.Errorf("the flush after the outage: %v", err)
	}
	r.Kvbfs("volume", "set", "v", "--io-timeout", "2s", "--store", store)
	srv.Stop()
	writeVersion(t, f, blocks, 3)
	if err := f.Sync(); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("a flush with --io-timeout while the server is stopped: %v", err)
	}
	srv.Continue()
	rig.Eventually(t, 30*time.Second, "a flush succeeds", func() bool { return f.Sync() == nil })
	f.Close()
	m.Kill()
	m.Mount(store)
	f = rig.Direct(t, m.Image("v"))
	readVersion(t, f, blocks, 3)
	f.Close()
	m.Umount()
}

// TestWriteBackFull: on a full server a new block is ENOSPC at its write, and what is
// deferred is stored by the flush all the same.
func TestWriteBackFull(t *testing.T) {
	rig.RequireFUSE(t)
	r := rig.New(t, 2*time.Minute)
	r.CacheMode = "writeback"
	srv := r.Memcached(16)
	store := srv.URL()
	r.Create(store, "v", "64M")
	m := r.Mount(store, late)
	f := rig.Direct(t, m.Image("v"))
	buf := rig.Aligned(rig.BlockSize)
	stored := int64(0)
	for ; stored < 16384; stored++ {
		rig.Stamp(buf, stored, 1)
		if err := f.WriteAt(buf, stored*rig.BlockSize); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	writeVersion(t, f, stored, 2)
	if st := writeBackStats(t, m); st.Deferred < uint64(stored)/2 {
		t.Errorf("%d blocks: %+v", stored, st)
	}
	rig.Stamp(buf, 16000, 1)
	if err := f.WriteAt(buf, 16000*rig.BlockSize); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a new block on a full server: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("a flush on a full server: %v", err)
	}
	f.Close()
	m.Kill()
	m.Mount(store)
	f = rig.Direct(t, m.Image("v"))
	readVersion(t, f, stored, 2)
	f.Close()
	m.Umount()
}
